//! Three processes handle events while they are killed and frozen, and while the broker restarts.
//!
//! Each runs a listener and a projector at `AtLeastOnce`, a projector at `Deduplicated`, and a read
//! model at `ExactlyOnceEffect`. One of a hundred attempts fails, and 13 events fail until their
//! cause is mended: an operator then redrives them. At the end every event has had its effects, in
//! order, and the read models are what the events table adds up to.
//!
//! `FOLDSTREAM_LONG=1` goes on for 20 minutes, and `FOLDSTREAM_SEED=<n>` gives another schedule.
use super::{
    Fleet, PATIENCE, Polling, Worker, publish_the_rest,
    stored::{self, StoredEvent},
    until, until_none_is_left,
};
use foldstream::operate::{DiscardState, LetterAddress, LetterKey, Reason};
use foldstream_live::{AccountEvent, AccountId, Effect, Effects, Role, WorkerSettings};
use foldstream_testkit::{containers::Kafka, length};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    num::NonZeroU32,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, JoinSet};

const STREAMS: u64 = 500;
const PARTITIONS: u32 = 6;
const EVENTS_PER_COMMIT: u64 = 8;
/// The processors that write down each effect.
const RECORDED: [&str; 3] = ["statements", "ledger", "balances"];
const PROCESSORS: [&str; 4] = ["statements", "ledger", "balances", "exact"];
const INSTANCES: [&str; 3] = ["worker-1", "worker-2", "worker-3"];

/// The length and the random choices of a run.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    time: Duration,
    /// The commits of each stream.
    commits: u64,
}

impl Plan {
    fn new() -> Self {
        let seconds = length::of("seconds", 60, 1_200);
        let commits = if length::is_long() { 50 } else { 5 };
        let seed = std::env::var("FOLDSTREAM_SEED").map_or(1, |seed| seed.parse().unwrap());
        Self {
            seed,
            time: Duration::from_secs(seconds),
            commits,
        }
    }
    fn steps(self) -> u64 {
        // Each takes 4 s on average, and a freeze 8 s more.
        self.time.as_secs() / 4 + 1
    }
    fn events(self) -> u64 {
        STREAMS * self.commits * EVENTS_PER_COMMIT
    }
    /// The events of one commit of a stream.
    fn commit(self, stream: u64, commit: u64) -> Vec<AccountEvent> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ (stream << 20) ^ commit);
        let mut event = |n: u64| {
            let amount = random.u64(1..1_000);
            let is_disputed = stream % 40 == 7 && commit == stream / 40 % 5 && n == 1;
            match () {
                () if is_disputed => AccountEvent::Disputed { amount },
                () if random.bool() => AccountEvent::Deposited { amount },
                () => AccountEvent::Withdrawn { amount },
            }
        };
        (0..EVENTS_PER_COMMIT).map(&mut event).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn nothing_is_lost_while_processes_die_and_the_broker_restarts() {
    let plan = Plan::new();
    let kafka = Kafka::start_restartable().await.unwrap();
    let mut fleet = Fleet::with_own_database("crashes", kafka.brokers(), PARTITIONS).await;
    fleet.settings.failures = 100;
    let polling = Polling::start(fleet.publisher());
    let load = start_load(&fleet, plan);

    let mut chaos = Chaos::new(&fleet, plan);
    chaos.run(&kafka).await;
    load.await.unwrap();
    polling.stop().await;
    publish_the_rest(&fleet).await;
    for processor in PROCESSORS {
        let left = async || stored::lag(&fleet, processor).await;
        until_none_is_left("records to commit", left).await;
    }

    let parked = mend_and_redrive(&fleet).await;
    let rows = async || stored::failed_events(&fleet).await.is_empty();
    until("no row about a failed event is left", rows).await;
    let (log, discards) = (chaos.log, chaos.discards);
    for mut worker in chaos.workers {
        worker.assert_running();
        worker.stop().await;
    }
    for processor in PROCESSORS {
        assert_eq!(stored::lag(&fleet, processor).await, Some(0), "{processor}");
    }
    assert_eq!(stored::failed_events(&fleet).await, [""; 0]);

    let events = stored::events(&fleet).await;
    let stored: u64 = events.values().map(|events| events.len() as u64).sum();
    assert_eq!(stored, plan.events());
    let duplicates = check_effects(&fleet, &events, &discards).await;
    check_read_models(&fleet, &events).await;
    let moves = std::fs::read_to_string(fleet.settings.moves()).unwrap_or_default();
    let moves = moves.lines().count();
    tell(plan, &log, moves, &duplicates, &parked);

    assert!(log.kills >= 10, "too few kills: {log:?}");
    assert!(
        moves >= 3,
        "partitions moved only {moves} times with events in hand"
    );
    for processor in ["statements", "ledger"] {
        assert!(
            duplicates[processor] > 0,
            "no kill fell between an effect and its commit"
        );
    }
    assert!(parked.redriven > 0 && log.failed_redrives > 0, "{log:?}");
    assert!(log.freezes > 0 && log.broker_restarts > 0, "{log:?}");
}

/// Appends all events, spread over the time of the run.
fn start_load(fleet: &Fleet, plan: Plan) -> JoinHandle<()> {
    let repository = fleet.repository();
    tokio::spawn(async move {
        let pause = plan.time.mul_f64(0.8) / u32::try_from(plan.commits * STREAMS).unwrap();
        let (started, mut running) = (Instant::now(), JoinSet::new());
        for n in 0..plan.commits * STREAMS {
            let (commit, stream) = (n / STREAMS, n % STREAMS);
            let due = started + pause * u32::try_from(n).unwrap();
            tokio::time::sleep_until(due.into()).await;
            // The commits of a stream lie far apart, and are in order all the same.
            if running.len() >= 50 {
                running.join_next().await.unwrap().unwrap();
            }
            let repository = repository.clone();
            running.spawn(async move {
                let id = AccountId::from(format!("{stream:03}"));
                let events = plan.commit(stream, commit);
                repository.execute(&id, events).await.unwrap();
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    })
}

/// The number of things that have happened.
#[derive(Debug, Default)]
struct Log {
    kills: u64,
    freezes: u64,
    broker_restarts: u64,
    /// Redrives that were tried before the cause was mended.
    failed_redrives: u64,
}

/// The disturbances of the processes.
struct Chaos<'a> {
    fleet: &'a Fleet,
    plan: Plan,
    random: fastrand::Rng,
    workers: Vec<Worker>,
    log: Log,
    discards: Vec<LetterAddress>,
    /// The place in the file of effects up to which it was read.
    read: u64,
}

impl<'a> Chaos<'a> {
    fn new(fleet: &'a Fleet, plan: Plan) -> Self {
        let workers = INSTANCES.map(|instance| fleet.start(Role::Accounts, instance));
        Self {
            fleet,
            plan,
            random: fastrand::Rng::with_seed(plan.seed),
            workers: workers.into(),
            log: Log::default(),
            discards: Vec::new(),
            read: 0,
        }
    }

    async fn run(&mut self, kafka: &Kafka) {
        let steps = self.plan.steps();
        for step in 0..steps {
            let pause = self.random.u64(1_500..3_500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match step {
                _ if step == steps / 3 => self.discard_two_events().await,
                _ if step == steps / 2 => {
                    kafka.restart(Duration::from_secs(3)).await.unwrap();
                    self.log.broker_restarts += 1;
                }
                _ if step == steps * 2 / 3 => self.redrive_too_early().await,
                _ if step % 5 == 2 => self.freeze().await,
                _ => self.kill().await,
            }
        }
    }

    /// Kills a process that has just handled an event, and starts it again.
    async fn kill(&mut self) {
        let victim = self.random.usize(..self.workers.len());
        let id = self.workers[victim].id();
        let patience = Instant::now() + Duration::from_secs(3);
        let is_busy = |effects: &[Effect]| effects.iter().any(|effect| effect.process == id);
        self.new_effects();
        while Instant::now() < patience && !is_busy(&self.new_effects()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let worker = self.workers.swap_remove(victim);
        let instance = worker.instance.clone();
        worker.kill().await;
        let again = self.fleet.start(Role::Accounts, &instance);
        self.workers.push(again);
        self.log.kills += 1;
    }

    /// Freezes a process for longer than its session, so that others get its partitions while it
    /// believes that it owns them.
    async fn freeze(&mut self) {
        let victim = self.random.usize(..self.workers.len());
        self.workers[victim].signal("STOP");
        let frozen = WorkerSettings::SESSION + Duration::from_secs(2);
        tokio::time::sleep(frozen).await;
        self.workers[victim].signal("CONT");
        self.log.freezes += 1;
    }

    /// Discards a dead letter of the listener, and the event at which a stream of the ledger is
    /// parked.
    async fn discard_two_events(&mut self) {
        let operator = self.fleet.operator();
        let reason = Reason::new("ann", "settled out of court").unwrap();
        for processor in ["statements", "ledger"] {
            let one = NonZeroU32::MIN;
            let deadline = Instant::now() + PATIENCE;
            let letter = loop {
                // The processor may not have started yet.
                let page = operator.letters(processor, None, one).await;
                if let Some(letter) = page.ok().and_then(|page| page.items.into_iter().next()) {
                    break letter;
                }
                assert!(Instant::now() < deadline, "{processor} has no letter");
                tokio::time::sleep(Duration::from_millis(200)).await;
            };
            let discarded = operator.discard(&letter.address, &reason).await.unwrap();
            assert_eq!(discarded.affected, 1, "{}", letter.address);
            self.discards.push(letter.address);
        }
    }

    /// Redrives before the cause is mended: what is parked fails again.
    async fn redrive_too_early(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.log.failed_redrives == 0 {
            assert!(Instant::now() < deadline, "no redrive has failed");
            let counts = self.fleet.redrive("ledger").await.counts;
            self.log.failed_redrives += counts.failed;
        }
    }

    /// Returns the effects since the last call.
    fn new_effects(&mut self) -> Vec<Effect> {
        Effects::read_from(self.fleet.folder.path(), &mut self.read)
    }
}

/// The number of events that were parked or dead, and redriven.
struct Redriven {
    streams: u64,
    letters: u64,
    redriven: u64,
}

/// Mends the cause of the failures, and redrives everything.
async fn mend_and_redrive(fleet: &Fleet) -> Redriven {
    let (operator, many) = (fleet.operator(), NonZeroU32::new(1_000).unwrap());
    let mut sum = Redriven {
        streams: 0,
        letters: 0,
        redriven: 0,
    };
    for processor in PROCESSORS {
        let parked = operator.parked(processor, None, many).await.unwrap().items;
        let letters = operator.letters(processor, None, many).await.unwrap().items;
        assert!(!letters.is_empty(), "{processor}");
        assert_eq!(parked.is_empty(), processor == "statements", "{processor}");
        sum.streams += parked.len() as u64;
        sum.letters += letters.len() as u64;
    }
    fleet.mend();
    for processor in PROCESSORS {
        let counts = fleet.redrive(processor).await.counts;
        assert_eq!(counts.failed, 0, "{processor}: {counts:?}");
        sum.redriven += counts.handled;
    }
    sum
}

/// Checks the effects of all events, and returns the number of duplicates of each processor.
async fn check_effects(
    fleet: &Fleet,
    events: &BTreeMap<String, Vec<StoredEvent>>,
    discards: &[LetterAddress],
) -> BTreeMap<&'static str, usize> {
    let mut discarded = BTreeSet::new();
    for address in discards {
        let state = fleet.operator().discard_state(address).await.unwrap();
        assert_eq!(state, Some(DiscardState::Passed), "{address}");
        let LetterKey::Event { stream, version } = &address.key else {
            panic!("{address}")
        };
        discarded.insert((address.processor.clone(), stream.to_string(), version.get()));
    }
    assert_eq!(discarded.len(), 2);

    let mut effects = BTreeMap::<(String, String), Vec<u64>>::new();
    for effect in Effects::read(fleet.folder.path()) {
        let of_stream = effects.entry((effect.processor, effect.stream));
        of_stream.or_default().push(effect.version);
    }
    let mut duplicates = BTreeMap::new();
    for processor in RECORDED {
        let count = duplicates.entry(processor).or_default();
        for (stream, events) in events {
            let key = (processor.to_owned(), stream.clone());
            let versions = effects.remove(&key).unwrap_or_default();
            let mut seen = BTreeSet::new();
            let firsts: Vec<u64> = versions
                .iter()
                .copied()
                .filter(|v| seen.insert(*v))
                .collect();
            *count += versions.len() - firsts.len();
            let is_wanted = |version: &u64| {
                let key = (processor.to_owned(), stream.clone(), *version);
                !discarded.contains(&key)
            };
            let mut wanted: Vec<u64> = (1..=events.len() as u64).filter(is_wanted).collect();
            if processor == "statements" {
                // A listener goes on after an event that it has given up, and handles it last.
                let is_late = |v: &u64| events[usize::try_from(*v).unwrap() - 1].is_dispute();
                wanted.sort_by_key(is_late);
            }
            assert_eq!(firsts, wanted, "{processor} {stream}: {versions:?}");
        }
    }
    assert!(
        effects.is_empty(),
        "effects of events that do not exist: {effects:?}"
    );
    duplicates
}

/// Checks that the read models are what the events add up to.
async fn check_read_models(fleet: &Fleet, events: &BTreeMap<String, Vec<StoredEvent>>) {
    for model in ["exact", "balances"] {
        let rows = stored::rows_of(fleet, model).await;
        assert_eq!(rows.len(), events.len(), "{model}");
        for (stream, events) in events {
            let expected = (stored::fold(events), events.len() as u64);
            assert_eq!(rows[stream], expected, "{model} {stream}");
        }
    }
}

/// Prints what has happened, also if the test passes.
fn tell(
    plan: Plan,
    log: &Log,
    moves: usize,
    duplicates: &BTreeMap<&'static str, usize>,
    redriven: &Redriven,
) {
    let Redriven {
        streams,
        letters,
        redriven,
    } = redriven;
    let text = format!(
        "crashes: {} events in {STREAMS} streams, seed {}: each had its effects, in order\n\
         crashes:   {} kills, {} freezes beyond the session, {} restarts of the broker\n\
         crashes:   {moves} times partitions moved with events in hand\n\
         crashes:   duplicates: {} and {} at AtLeastOnce (listener, projector), {} at Deduplicated, 0 at ExactlyOnceEffect\n\
         crashes:   at the end {streams} parked streams and {letters} letters; {redriven} events redriven, {} failed again before, 2 discarded\n",
        plan.events(),
        plan.seed,
        log.kills,
        log.freezes,
        log.broker_restarts,
        duplicates["statements"],
        duplicates["ledger"],
        duplicates["balances"],
        log.failed_redrives,
    );
    // The harness captures what a test prints by the macros.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
