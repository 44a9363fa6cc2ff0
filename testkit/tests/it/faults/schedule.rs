//! The calls at which faults strike.
use super::{filled, first_commit, stream};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Fault, Faults, Moment, Op, Rule, seeds},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Returns the calls that failed, of 12 appends to as many streams.
async fn struck(rule: Rule) -> Vec<u64> {
    let faults = Faults::seeded(1).with(rule);
    let store = faults.event_store(InMemoryEventStore::new());
    for n in 0..12 {
        let _ = store.append(&first_commit(&n.to_string(), 1)).await;
    }
    faults.log().iter().map(|injected| injected.call).collect()
}

#[tokio::test]
async fn a_rule_strikes_the_calls_that_it_says() {
    let rule = || Fault::Unavailable.on(Op::Append);
    assert_eq!(struck(rule()).await.len(), 12);
    assert_eq!(struck(rule().at(3)).await, [3]);
    assert_eq!(struck(rule().first(2)).await, [1, 2]);
    assert_eq!(struck(rule().from(11)).await, [11, 12]);
    assert_eq!(struck(rule().every(5)).await, [5, 10]);
    let about_four = |call: &foldstream_testkit::faults::Call<'_>| call.is_about(&stream("4"));
    assert_eq!(struck(rule().matching(about_four)).await, [5]);
    assert!(struck(Fault::Unavailable.on(Op::Read)).await.is_empty());
    // An append cannot have a hole.
    assert!(struck(Fault::Hole.anywhere()).await.is_empty());
    let some = struck(rule().one_in(3)).await.len();
    assert!((1..12).contains(&some), "{some}");
    let chosen = Rule::chosen_by(|call| call.is_about(&stream("7")).then_some(Fault::LoseReply));
    assert_eq!(struck(chosen).await, [8]);
}

/// Describes the faults in a run of this seed.
async fn run(seed: u64) -> String {
    let faults = Faults::seeded(seed)
        .with(Fault::LoseReply.on(Op::WRITES).one_in(4))
        .with(
            Fault::Delay(Duration::from_millis(50))
                .anywhere()
                .one_in(3)
                .jittered(),
        )
        .with(Fault::Hole.on(Op::Read).one_in(5));
    let store = faults.event_store(InMemoryEventStore::new());
    for n in 0..40 {
        let _ = store.append(&first_commit(&n.to_string(), 1)).await;
        let _ = super::history(&*store, &n.to_string()).await;
    }
    faults.to_string()
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_and_the_same_calls_give_the_same_faults() {
    let log = run(7).await;
    assert!(log.starts_with("faults of seed 7 (replay: FOLDSTREAM_SEED=7)"));
    assert!(log.lines().count() > 20, "{log}");
    assert!(log.contains("1 events on cart#3 after 0"), "{log}");
    assert_eq!(log, run(7).await);
    assert_ne!(log.split_once('\n'), run(8).await.split_once('\n'));
}

#[tokio::test]
async fn a_rule_more_does_not_move_what_the_others_do() {
    let of = async |faults: Faults| {
        let store = faults.event_store(InMemoryEventStore::new());
        for n in 0..60 {
            let _ = store.append(&first_commit(&n.to_string(), 1)).await;
        }
        let log = faults.log().into_iter();
        let lost = log.filter(|i| matches!(i.fault, Fault::LoseReply));
        lost.map(|i| i.call).collect::<Vec<_>>()
    };
    let one = Faults::seeded(3).with(Fault::LoseReply.on(Op::Append).one_in(6));
    let two = Faults::seeded(3)
        .with(Fault::LoseReply.on(Op::Append).one_in(6))
        .with(Fault::Delay(Duration::ZERO).anywhere().one_in(2));
    let lost = of(one).await;
    assert!(!lost.is_empty());
    assert_eq!(lost, of(two).await);
}

#[tokio::test]
async fn disabled_faults_do_nothing_until_they_are_enabled() {
    let faults = Faults::script([Fault::Unavailable.anywhere()]);
    let store = faults.event_store(InMemoryEventStore::new());
    assert!(store.streams("cart", None).await.is_err());
    faults.disable();
    filled(&*store, "a", 2).await;
    faults.enable();
    assert!(store.streams("cart", None).await.is_err());
}

#[tokio::test]
async fn a_probe_sees_what_reaches_the_backend_and_what_was_done_there() {
    let seen: Arc<Mutex<Vec<(Moment, Op)>>> = Arc::default();
    let notes = seen.clone();
    let faults = Faults::script([
        Fault::Unavailable.on(Op::Append).at(1),
        Fault::LoseReply.on(Op::Append).at(2),
    ]);
    let faults =
        faults.with_probe(move |moment, call| notes.lock().unwrap().push((moment, call.op())));
    let store = faults.event_store(InMemoryEventStore::new());
    // Not sent; sent and applied; sent twice, so a repeat; a conflict, which changes nothing.
    let append = first_commit("a", 1);
    for _ in 0..3 {
        let _ = store.append(&append).await;
    }
    let _ = store.append(&first_commit("a", 1)).await;
    use Moment::{Done, Reaches};
    let moments: Vec<_> = seen.lock().unwrap().iter().map(|(m, _)| *m).collect();
    assert_eq!(moments, [Reaches, Done, Reaches, Done, Reaches]);
}

#[test]
fn seeds_are_a_range_unless_one_is_to_be_replayed() {
    let expected = match std::env::var("FOLDSTREAM_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 3..9,
    };
    assert_eq!(seeds(3..9), expected);
}
