//! The rules of a distributed breaker, each by itself: one process, and rows that the test writes.
use super::{
    Admission, BreakerPolicy, CircuitState, Outcome, Ticket, Transition,
    machine::Breaker,
    memory::{Store, Write},
    quorum::{Answer, Membership, Request},
    rows::{EpochRow, ProbeRow, VoteRow},
};
use std::time::Duration;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const RENEW: Duration = Duration::from_secs(5);

/// A process "me" with its breaker, and the rows of all.
struct Given {
    breaker: Breaker,
    now: Instant,
    rows: Store,
    /// The requests other than reads, in order.
    asked: Vec<Request>,
    store_down: bool,
}

fn given() -> Given {
    given_with(BreakerPolicy::default().with_open_time(SECOND, 8 * SECOND))
}
fn given_with(policy: BreakerPolicy) -> Given {
    let now = Instant::now();
    let member = Membership {
        label: "me".into(),
        owner: "me#1".into(),
        quorum: 2,
        renew: RENEW,
    };
    Given {
        breaker: Breaker::distributed(policy, member, now),
        now,
        rows: Store::default(),
        asked: Vec::new(),
        store_down: false,
    }
}

impl Given {
    fn epoch(&mut self, epoch: u64) {
        let row = EpochRow {
            epoch,
            ..EpochRow::default()
        };
        self.rows.epoch = Some((row, self.rows.fresh()));
    }
    fn vote_of(&mut self, label: &str, epoch: u64) {
        let vote = (VoteRow { epoch }, self.rows.fresh());
        self.rows.votes.insert(label.into(), vote);
    }
    fn lease_of(&mut self, owner: Option<&str>, open_millis: u64) {
        let row = ProbeRow {
            epoch: 1,
            owner: owner.map(Into::into),
            lease_millis: 15_000,
            open_millis,
            rest: serde_json::Map::new(),
        };
        self.rows.probe = Some((row, self.rows.fresh()));
    }
    fn lease(&self) -> &ProbeRow {
        &self.rows.probe.as_ref().expect("a lease").0
    }
    fn is_voting(&self) -> bool {
        self.rows.votes.contains_key("me")
    }

    /// Does what the breaker asks for now.
    fn serve(&mut self) {
        while let Some(request) = self.breaker.request(self.now) {
            let answer = match Write::of("me", &request) {
                _ if self.store_down => Answer::Failed,
                None => Answer::Read(self.rows.read()),
                Some(write) => {
                    let revision = self.rows.fresh();
                    self.rows.write(&write, revision)
                }
            };
            if request != Request::Read {
                self.asked.push(request);
            }
            self.breaker.answered(answer, self.now);
        }
    }

    /// Lets time pass in which the votes of `voters` are renewed.
    fn pass(&mut self, time: Duration, voters: &[(&str, u64)]) {
        let end = self.now + time;
        while self.now < end {
            for (label, epoch) in voters {
                self.vote_of(label, *epoch);
            }
            self.now += SECOND;
            self.breaker.observe(self.now);
            self.serve();
        }
    }
    fn fail(&mut self, calls: usize) {
        for _ in 0..calls {
            let Admission::Call(ticket) = self.breaker.admit(self.now) else {
                panic!("not closed");
            };
            self.settle(ticket, Outcome::Transient);
        }
        self.serve();
    }
    fn settle(&mut self, ticket: Ticket, outcome: Outcome) -> Option<Transition> {
        self.breaker.settle(ticket, outcome, self.now)
    }
    fn state(&self) -> CircuitState {
        self.breaker.state(self.now)
    }
    #[track_caller]
    fn probe_now(&mut self) -> Ticket {
        match self.breaker.admit(self.now) {
            Admission::Probe(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }
    #[track_caller]
    fn refused(&mut self) {
        let admission = self.breaker.admit(self.now);
        assert!(
            matches!(admission, Admission::Refused { .. }),
            "{admission:?}"
        );
    }
    fn wrote_votes(&self) -> Vec<u64> {
        let epochs = self.asked.iter().filter_map(|request| match request {
            Request::PutVote(row) => Some(row.epoch),
            _ => None,
        });
        epochs.collect()
    }
    /// A process that holds the lease at quorum, and may probe now.
    fn holding() -> Self {
        let mut given = given();
        given.pass(6 * SECOND, &OTHERS);
        assert!(matches!(given.state(), CircuitState::Open { .. }));
        given.refused();
        given.pass(2 * SECOND, &OTHERS);
        assert_eq!(given.state(), CircuitState::HalfOpen);
        given
    }
}

const OTHERS: [(&str, u64); 2] = [("a", 0), ("b", 0)];

#[test]
fn a_vote_is_written_at_the_opening_and_renewed_until_the_circuit_closes() {
    let mut given = given();
    given.epoch(7);
    given.serve();
    given.fail(5);
    assert_eq!(given.wrote_votes(), [7], "at once");
    given.pass(20 * SECOND, &[]);
    assert_eq!(given.wrote_votes(), [7; 5], "in each period");
    let probe = given.probe_now();
    given.settle(probe, Outcome::Success);
    given.serve();
    assert!(given.rows.votes.is_empty());
    given.pass(20 * SECOND, &[]);
    assert_eq!(given.wrote_votes().len(), 5);
}

#[test]
fn a_voter_that_reads_a_later_epoch_stops_renewing_and_tries_for_itself_at_once() {
    let mut given = given();
    given.serve();
    // Long open, in epoch 0.
    given.fail(5);
    for _ in 0..4 {
        given.now += 60 * SECOND;
        let probe = given.probe_now();
        given.settle(probe, Outcome::Transient);
    }
    given.serve();
    assert!(matches!(given.state(), CircuitState::Open { .. }));
    given.epoch(1);
    given.asked.clear();
    given.now += RENEW;
    given.serve();
    assert_eq!(given.state(), CircuitState::HalfOpen);
    given.pass(20 * SECOND, &[]);
    assert_eq!(given.wrote_votes(), [0; 0], "its vote is of epoch 0");
    // Its own probe decides whether it votes in the new epoch.
    let probe = given.probe_now();
    given.settle(probe, Outcome::Transient);
    given.serve();
    assert_eq!(given.wrote_votes(), [1]);
}

#[test]
fn a_circuit_that_opened_without_the_store_votes_once_the_epoch_is_known() {
    let mut given = given();
    given.epoch(3);
    given.store_down = true;
    given.fail(5);
    given.pass(10 * SECOND, &[]);
    assert_eq!(given.wrote_votes(), [0; 0]);
    given.store_down = false;
    given.pass(6 * SECOND, &[]);
    assert_eq!(given.wrote_votes().first(), Some(&3));
}

#[test]
fn a_process_contends_for_the_probe_only_while_callers_wait() {
    let mut given = given();
    given.pass(30 * SECOND, &OTHERS);
    assert!(matches!(given.state(), CircuitState::Open { until: None }));
    assert_eq!(given.rows.probe, None, "nobody waits");
    given.breaker.set_waiting(true);
    given.serve();
    assert!(given.rows.probe.is_some(), "a held record waits");

    let mut given = self::given();
    given.pass(30 * SECOND, &OTHERS);
    given.refused();
    given.serve();
    assert!(given.rows.probe.is_some(), "a caller was refused");
}

#[test]
fn the_lease_of_another_process_is_taken_over_after_its_time_and_with_its_open_time() {
    let mut given = given();
    given.lease_of(Some("other#1"), 4000);
    given.breaker.set_waiting(true);
    given.pass(14 * SECOND, &OTHERS);
    assert_eq!(given.asked, [], "other may be alive");
    given.pass(3 * SECOND, &OTHERS);
    let lease = given.lease().clone();
    let owner = lease.owner.as_deref();
    assert_eq!(
        (lease.epoch, owner, lease.open_millis),
        (2, Some("me#1"), 4000)
    );
    given.refused();
    given.pass(2 * SECOND, &OTHERS);
    given.refused();
    given.pass(2 * SECOND, &OTHERS);
    let _ = given.probe_now();
}

#[test]
fn a_leased_probe_that_succeeds_ends_the_epoch_in_which_it_started() {
    let mut given = Given::holding();
    let probe = given.probe_now();
    assert_eq!(
        given.settle(probe, Outcome::Success),
        None,
        "not before it is stored"
    );
    given.refused();
    given.breaker.set_waiting(true);
    given.serve();
    assert_eq!(given.state(), CircuitState::Closed);
    assert_eq!(given.rows.epoch.as_ref().map(|(row, _)| row.epoch), Some(1));
    let lease = given.lease().clone();
    assert_eq!((lease.owner, lease.open_millis), (None, 1000), "released");
}

#[test]
fn a_leased_probe_that_fails_keeps_the_lease_and_doubles_its_open_time() {
    let mut given = Given::holding();
    for open in [2, 4, 8, 8] {
        let probe = given.probe_now();
        given.settle(probe, Outcome::Transient);
        given.serve();
        let lease = given.lease().clone();
        let stored = (lease.owner.as_deref(), lease.open_millis);
        assert_eq!(stored, (Some("me#1"), open * 1000));
        given.pass((open as u32 - 1) * SECOND, &OTHERS);
        given.refused();
        given.pass(SECOND, &OTHERS);
    }
    assert_eq!(given.wrote_votes(), [0; 0], "only the own circuit votes");
}

#[test]
fn a_leased_probe_that_is_throttled_ends_the_epoch_and_keeps_its_pause() {
    let mut given = Given::holding();
    let probe = given.probe_now();
    let retry_after = 7 * SECOND;
    given.settle(probe, Outcome::Throttled { retry_after });
    given.serve();
    assert_eq!(given.state(), CircuitState::Closed);
    let until = Some(given.now + retry_after);
    assert_eq!(given.breaker.admit(given.now), Admission::Refused { until });
}

#[test]
fn answers_from_an_older_epoch_count_neither_for_nor_against_the_service() {
    for late in [Outcome::Success, Outcome::Transient] {
        let mut given = Given::holding();
        let probe = given.probe_now();
        // Another process has found the service meanwhile, and then it failed again.
        given.epoch(1);
        given.pass(20 * SECOND, &[("a", 1), ("b", 1)]);
        assert_ne!(given.state(), CircuitState::Closed);
        let before = (given.state(), given.lease().clone());
        given.asked.clear();
        assert_eq!(given.settle(probe, late), None);
        given.serve();
        assert_eq!((given.state(), given.lease().clone()), before);
        let ended = |request: &Request| matches!(request, Request::PutEpoch(..));
        assert!(!given.asked.iter().any(ended), "{late:?}");
    }
}

#[test]
fn an_end_of_the_epoch_that_another_process_was_faster_with_is_not_repeated() {
    let mut given = Given::holding();
    let probe = given.probe_now();
    given.settle(probe, Outcome::Success);
    // Meanwhile, unread by this process.
    given.epoch(1);
    given.serve();
    given.pass(10 * SECOND, &[]);
    assert_eq!(given.rows.epoch.as_ref().map(|(row, _)| row.epoch), Some(1));
    assert_eq!(given.state(), CircuitState::Closed);
}

#[test]
fn a_process_without_work_closes_deletes_its_vote_and_hands_on_the_lease() {
    let mut given = Given::holding();
    let probe = given.probe_now();
    given.settle(probe, Outcome::Transient);
    given.serve();
    given.pass(SECOND, &OTHERS);
    given.breaker.set_serving(false, given.now);
    given.serve();
    let lease = given.lease().clone();
    assert_eq!((lease.owner, lease.open_millis), (None, 2000));

    let mut given = self::given();
    given.serve();
    given.fail(5);
    assert!(given.is_voting());
    let (_, transition) = given.breaker.set_serving(false, given.now);
    assert_eq!(transition, Some(Transition::Closed));
    given.serve();
    assert!(given.rows.votes.is_empty());
}

#[test]
fn a_vote_of_an_earlier_life_is_deleted_at_the_start() {
    let mut given = given();
    given.vote_of("me", 0);
    given.vote_of("other", 0);
    given.serve();
    assert!(!given.is_voting() && given.rows.votes.contains_key("other"));
}

#[test]
fn a_vote_that_stands_still_is_deleted_after_an_hour_by_whoever_has_seen_it() {
    let mut given = given();
    given.vote_of("gone", 0);
    given.serve();
    given.now += 3599 * SECOND;
    given.serve();
    assert!(given.rows.votes.contains_key("gone"));
    given.now += RENEW;
    given.serve();
    assert!(given.rows.votes.is_empty());
}

#[test]
fn a_quorum_ends_by_itself_when_the_store_is_unreachable() {
    let mut given = Given::holding();
    given.store_down = true;
    let opened = given.now;
    while given.state() != CircuitState::Closed {
        given.now += SECOND;
        assert!(given.now <= opened + 3 * RENEW);
        assert!(given.breaker.wake_at(given.now).unwrap() <= given.now + RENEW);
    }
    assert_eq!(given.breaker.observe(given.now), Some(Transition::Closed));
    assert!(matches!(given.breaker.admit(given.now), Admission::Call(_)));
}

#[test]
fn a_probe_that_hangs_leaves_the_lease_to_others_although_callers_wait() {
    let mut given = Given::holding();
    given.breaker.set_waiting(true);
    let _hangs = given.probe_now();
    given.pass(15 * SECOND, &OTHERS);
    let renewed = given.rows.probe.clone();
    given.pass(60 * SECOND, &OTHERS);
    assert_eq!(given.rows.probe, renewed);
}

#[test]
fn only_changes_of_the_work_are_changes() {
    let mut given = given();
    assert!(given.breaker.set_waiting(true));
    assert!(!given.breaker.set_waiting(true));
    assert_eq!(given.breaker.set_serving(false, given.now), (true, None));
    assert_eq!(given.breaker.set_serving(false, given.now), (false, None));
}

#[test]
fn times_without_bounds_do_not_overflow() {
    let policy = BreakerPolicy::default().with_open_time(SECOND, Duration::MAX);
    let mut given = given_with(policy);
    given.lease_of(None, u64::MAX);
    given.breaker.set_waiting(true);
    given.pass(30 * SECOND, &OTHERS);
    given.refused();
    let mut given = given_with(policy);
    given.lease_of(Some("other#1"), u64::MAX);
    given.breaker.set_waiting(true);
    given.pass(60 * SECOND, &OTHERS);
    assert_eq!(given.lease().owner.as_deref(), Some("me#1"));
    given.refused();
}
