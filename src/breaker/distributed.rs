//! The driver of a distributed breaker: does what the machine asks for, one request at a time.
use super::{
    call::CircuitBreaker,
    changes::ChangesReceiver,
    machine::Breaker,
    policy::{BreakerPolicy, InvalidBreaker},
    probe_lease::millis,
    quorum::{Answer, Membership, Request},
    rows::{self, NameRow, VOTE, epoch_key, probe_key, vote_key},
};
use crate::{
    IdSource, SystemIds,
    control::{PutIf, Rows},
    ports::{ControlStore, ControlStoreError, DeleteExpect, Expect, RowKey, shared},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// The longest time that a request to the control store may take.
const REQUEST: Duration = Duration::from_secs(10);
/// The longest time that a stopped process takes to delete its vote.
const FAREWELL: Duration = Duration::from_secs(2);

/// A circuit breaker that the processes of a service share through a control store.
///
/// Every process has a [`CircuitBreaker`] of its own, and opens it by what it sees itself. A
/// process whose circuit opens votes. At [`quorum`](Self::with_quorum) votes the circuits of all
/// processes are open, and one process at a time makes the probe for all.
///
/// # What does the quorum mean?
/// It is the number of processes that must find the service failing before the others believe it. A
/// process that fails for a reason of its own, such as a broken network card or a wrong credential,
/// has one vote, however often it starts again, and stops no other process.
///
/// - With the default of 2, a service with *one* instance never reaches it. Its breaker then works
///   as a local one, and so does every breaker below the quorum.
/// - With 1, a single process opens the circuits of all.
/// - Above a half of the instances, an outage that hits only some of them may never reach it. Their
///   local breakers still protect the service.
///
/// # What if the control store is unreachable?
/// Votes that are not seen to be renewed cease to count after three renew periods. Each process
/// then decides alone.
///
/// # Cost
/// One strongly consistent read of one partition per process and renew period, and, while circuits
/// are open, one write per voter and one by the process that probes. At its start a process reads
/// the row by which [`Operator`](crate::operate::Operator::breakers) lists the breaker, and writes
/// it if it is absent or has other settings.
///
/// # Example
/// ```
/// use foldstream::breaker::{BreakerPolicy, CircuitState, DistributedBreaker};
/// use foldstream_testkit::InMemoryControlStore;
/// use tokio_util::sync::CancellationToken;
///
/// # let mut runtime = tokio::runtime::Builder::new_current_thread();
/// # runtime.enable_time().start_paused(true).build()?.block_on(async {
/// let control = InMemoryControlStore::new();
/// let stop = CancellationToken::new();
/// let member = |instance: &str| {
///     DistributedBreaker::new("payments", instance, BreakerPolicy::default(), control.clone())
/// };
/// let mut breakers = Vec::new();
/// let mut tasks = Vec::new();
/// for instance in ["node-1", "node-2", "node-3"] {
///     let distributed = member(instance)?;
///     breakers.push(distributed.breaker());
///     tasks.push(tokio::spawn(distributed.run(stop.clone())));
/// }
/// // Two of three processes find the service failing.
/// for breaker in &breakers[..2] {
///     for _ in 0..5 {
///         let failed = breaker.call_when(async { Err::<(), _>("busy") }, |_| true).await;
///         assert!(failed.is_err());
///     }
/// }
/// // The third one stops calling without having failed itself.
/// assert_eq!(breakers[2].state(), CircuitState::Closed);
/// tokio::time::sleep(std::time::Duration::from_secs(15)).await;
/// assert!(matches!(breakers[2].state(), CircuitState::Open { .. }));
///
/// stop.cancel();
/// for task in tasks {
///     task.await?;
/// }
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct DistributedBreaker {
    name: String,
    policy: BreakerPolicy,
    member: Membership,
    store: Arc<dyn ControlStore>,
    ids: Arc<dyn IdSource>,
    breaker: CircuitBreaker,
}

impl DistributedBreaker {
    /// Creates a process's part of a breaker, with a quorum of 2 and a renew period of 5 s.
    ///
    /// `name` is the same in all processes. `instance` names this process: it must be different in
    /// each, and the same when this process starts again, such as the name of a host. Both are
    /// stored.
    ///
    /// # Errors
    /// [`InvalidBreaker`] if the policy makes no sense, or if a name is empty, too long for a key
    /// of a row, or holds control characters.
    pub fn new(
        name: impl Into<String>,
        instance: impl Into<String>,
        policy: BreakerPolicy,
        control: impl ControlStore,
    ) -> Result<Self, InvalidBreaker> {
        let (name, label) = (name.into(), instance.into());
        policy.validate()?;
        validate(
            "name",
            &name,
            // The name is part of a partition, and a sort key in the list of breakers.
            RowKey::MAX_SORT,
        )?;
        validate("instance", &label, RowKey::MAX_SORT - VOTE.len())?;
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        let member = Membership {
            owner: owner(&label, &*ids),
            label,
            quorum: 2,
            renew: Duration::from_secs(5),
        };
        let breaker = CircuitBreaker::of(machine(policy, &member));
        Ok(Self {
            name,
            policy,
            member,
            store: shared::control_store(control),
            ids,
            breaker,
        })
    }

    /// Sets the number of votes at which the circuits of all processes are open. Default: 2. It
    /// must be the same in all processes. [`DistributedBreaker`] says what it means.
    ///
    /// # Errors
    /// [`InvalidBreaker`] if the number is zero, at which every circuit would always be open.
    pub fn with_quorum(mut self, votes: usize) -> Result<Self, InvalidBreaker> {
        if votes == 0 {
            return Err(InvalidBreaker {
                field: "quorum",
                reason: "at least 1 vote".into(),
            });
        }
        self.member.quorum = votes;
        Ok(self.restarted())
    }

    /// Sets the time between reads of the votes, and between renewals of a vote. Default: 5 s. It
    /// must be the same in all processes.
    ///
    /// With a shorter time the processes learn of each other sooner, for more requests. A vote
    /// counts from its second renewal on, so two processes open all others after about two periods.
    ///
    /// # Errors
    /// [`InvalidBreaker`] if the time is shorter than 1 ms or longer than an hour.
    pub fn with_renew(mut self, time: Duration) -> Result<Self, InvalidBreaker> {
        let allowed = Duration::from_millis(1)..=Duration::from_secs(3600);
        if !allowed.contains(&time) {
            return Err(InvalidBreaker {
                field: "renew",
                reason: format!("1 ms to 1 hour, not {time:?}"),
            });
        }
        self.member.renew = time;
        Ok(self.restarted())
    }

    /// Sets the source of the random ids of writes, for tests and simulations. Default:
    /// [`SystemIds`].
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.member.owner = owner(&self.member.label, &*ids);
        self.ids = ids;
        self.restarted()
    }

    /// Starts the machine again for changed settings.
    fn restarted(self) -> Self {
        *self.breaker.machine() = machine(self.policy, &self.member);
        self
    }

    /// Returns the breaker of this process. It decides alone until [`run`](Self::run) is polled.
    #[must_use]
    pub fn breaker(&self) -> CircuitBreaker {
        self.breaker.clone()
    }

    /// Exchanges votes with the other processes until `stop` is cancelled, and then deletes the
    /// vote of this process.
    ///
    /// Errors of the control store are logged and never end this future.
    ///
    /// # Cancellation
    /// If this future is dropped, the breaker decides alone after three renew periods. A vote of
    /// this process ceases to count at the same time.
    pub async fn run(self, stop: CancellationToken) {
        let driver = Driver {
            rows: Rows::new(self.store.clone(), self.ids),
            store: self.store,
            name: self.name,
            settings: NameRow {
                quorum: u64::try_from(self.member.quorum).unwrap_or(u64::MAX),
                renew_millis: millis(self.member.renew),
                ..NameRow::default()
            },
            label: self.member.label,
            breaker: self.breaker,
        };
        driver.run(&stop).await;
    }
}

fn machine(policy: BreakerPolicy, member: &Membership) -> Breaker {
    Breaker::distributed(policy, member.clone(), Instant::now())
}

/// Returns a name of this process in this life.
fn owner(label: &str, ids: &dyn IdSource) -> String {
    format!("{label}#{:032x}", ids.revision().as_u128())
}

fn validate(field: &'static str, name: &str, longest: usize) -> Result<(), InvalidBreaker> {
    let reason = match crate::text::forbidden_char(name) {
        _ if name.is_empty() || name.len() > longest => {
            format!("1 to {longest} bytes, this one has {}", name.len())
        }
        Some(c) => format!("no control characters or noncharacters, this one has {c:?}"),
        None => return Ok(()),
    };
    Err(InvalidBreaker { field, reason })
}

struct Driver {
    rows: Rows,
    store: Arc<dyn ControlStore>,
    name: String,
    label: String,
    /// The row of this process's settings, for operators.
    settings: NameRow,
    breaker: CircuitBreaker,
}

impl Driver {
    async fn run(self, stop: &CancellationToken) {
        let mut changes = self.breaker.changes();
        let mut is_registered = false;
        loop {
            let now = Instant::now();
            let (request, wake_at) = {
                let mut machine = self.breaker.machine();
                (machine.request(now), machine.wake_at(now))
            };
            let Some(request) = request else {
                let Some(at) = wake_at else { return };
                if !self.rest(at, &mut changes, stop).await {
                    break;
                }
                continue;
            };
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                answer = self.perform(request) => answer,
            };
            let is_read = matches!(answer, Answer::Read(_));
            self.take_in(answer);
            // The store has just answered. If it fails now, the next read is soon enough.
            if is_read && !is_registered {
                is_registered = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    done = self.register() => done,
                };
            }
        }
        // A request that was interrupted has no answer.
        self.take_in(Answer::Failed);
        if timeout(FAREWELL, self.leave()).await.is_err() {
            let (name, label) = (&self.name, &self.label);
            tracing::warn!(
                name,
                label,
                "the vote of this process was not deleted in time"
            );
        }
    }

    /// Waits until the machine has something to do. Returns false if the process is to stop.
    async fn rest(
        &self,
        at: Instant,
        changes: &mut ChangesReceiver,
        stop: &CancellationToken,
    ) -> bool {
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = changes.changed() => true,
            () = sleep_until(at) => {
                let transition = self.breaker.machine().observe(Instant::now());
                self.breaker.report(transition);
                true
            }
        }
    }

    /// Deletes the vote and hands on the lease.
    async fn leave(&self) {
        let transition = self.breaker.machine().leave(Instant::now());
        self.breaker.report(transition);
        loop {
            let request = self.breaker.machine().request(Instant::now());
            let Some(request) = request else { return };
            let answer = self.perform(request).await;
            self.take_in(answer);
        }
    }

    fn take_in(&self, answer: Answer) {
        let transition = self.breaker.machine().answered(answer, Instant::now());
        self.breaker.report(transition);
        self.breaker.notify();
    }

    async fn perform(&self, request: Request) -> Answer {
        let what = match &request {
            Request::Read => "read the votes",
            Request::PutEpoch(..) => "end the epoch of the votes",
            Request::PutVote(..) => "vote",
            Request::DeleteVote(..) => "delete a vote",
            Request::PutProbe(..) => "write the lease for the probe",
        };
        let answered = match timeout(REQUEST, self.send(request)).await {
            Ok(answered) => answered,
            Err(elapsed) => Err(ControlStoreError::Unavailable {
                source: elapsed.into(),
            }),
        };
        answered.unwrap_or_else(|error| {
            let (name, error) = (&self.name, crate::chain(&error));
            tracing::warn!(name, %error, "the circuit breaker could not {what}");
            Answer::Failed
        })
    }

    async fn send(&self, request: Request) -> Result<Answer, ControlStoreError> {
        let name = &self.name;
        match request {
            Request::Read => Ok(Answer::Read(rows::read(&*self.store, name).await?)),
            Request::PutEpoch(row, expect) => self.put(&epoch_key(name), row, expect).await,
            Request::PutVote(row) => {
                let key = vote_key(name, &self.label);
                self.put(&key, row, Expect::Any).await
            }
            Request::PutProbe(row, expect) => self.put(&probe_key(name), row, expect).await,
            Request::DeleteVote(label, revision) => {
                use crate::ports::DeleteOutcome::{Conflict, Deleted};
                let (key, expect) = (vote_key(name, &label), DeleteExpect::Revision(revision));
                Ok(match self.store.delete(&key, expect).await? {
                    Deleted | Conflict(None) => Answer::Deleted,
                    Conflict(Some(_)) => Answer::Conflict,
                })
            }
        }
    }

    async fn put<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        row: T,
        expect: Expect,
    ) -> Result<Answer, ControlStoreError> {
        Ok(match self.rows.put(key, row, expect).await? {
            PutIf::Written(row) => Answer::Written(row.revision),
            PutIf::Conflict(_) => Answer::Conflict,
        })
    }

    /// Lists the breaker for operators, with the settings of this process. Returns false if that
    /// must be tried again.
    async fn register(&self) -> bool {
        let registered = match timeout(REQUEST, self.write_name()).await {
            Ok(registered) => registered,
            Err(elapsed) => Err(ControlStoreError::Unavailable {
                source: elapsed.into(),
            }),
        };
        registered.unwrap_or_else(|error| {
            let (name, error) = (&self.name, crate::chain(&error));
            tracing::warn!(name, %error, "the circuit breaker could not be listed for operators");
            false
        })
    }

    async fn write_name(&self) -> Result<bool, ControlStoreError> {
        let key = rows::name_key(&self.name);
        let stored = self.rows.get::<NameRow>(&key).await?;
        let expect = match &stored {
            Some(stored) => Expect::Revision(stored.revision),
            None => Expect::Absent,
        };
        let before = stored.map(|stored| stored.value);
        let row = NameRow {
            quorum: self.settings.quorum,
            renew_millis: self.settings.renew_millis,
            rest: before.clone().unwrap_or_default().rest,
        };
        if before.as_ref() == Some(&row) {
            return Ok(true);
        }
        let put = self.rows.put(&key, row, expect).await?;
        Ok(matches!(put, PutIf::Written(_)))
    }
}
