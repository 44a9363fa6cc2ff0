//! Delivery levels: what each of them repeats after a crash.
use super::harness::*;
use foldstream::{
    ports::OffsetCommit,
    runner::{
        DeliveryLevel, ErrorClass, EventContext, HandlerResult, ModelId, ProcessorPolicy,
        Projector, RunnerError,
    },
};
use foldstream_testkit::faults::{Call, Fault, Faults, Moment, Op};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// A projector that leaves its positions to the runner.
struct WithoutPositions;
impl Projector for WithoutPositions {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        panic!("nothing may be projected")
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_once_effect_without_a_stored_position_halts_and_says_what_to_do() {
    let world = World::new(1);
    world.deposit("a").await;
    let policy = ProcessorPolicy::projector().with_level(DeliveryLevel::ExactlyOnceEffect);
    let runner = world.builder().projector_with(WithoutPositions, policy);
    let report = runner
        .build()
        .unwrap()
        .run(tokio::time::sleep(600 * SECOND))
        .await;
    let RunnerError::Halted { class, source, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert_eq!(*class, ErrorClass::Fatal);
    let text = source.to_string();
    assert!(
        text.contains("ExactlyOnceEffect") && text.contains("Projector::position"),
        "{text}"
    );
    assert_eq!(world.committed(SEEN).await, 0);

    // A listener has no position to store, so it cannot have the level either.
    let world = World::new(1);
    world.deposit("a").await;
    let policy = from_beginning().with_level(DeliveryLevel::ExactlyOnceEffect);
    let seen = Seen::new();
    let report = world.catch_up(seen.clone(), policy).await;
    assert!(
        matches!(error_of(&report), RunnerError::Halted { .. }),
        "{report:?}"
    );
    assert_eq!(seen.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn exactly_once_effect_with_stored_positions_applies_each_event_once_after_a_crash() {
    let world = World::new(1);
    for _ in 0..5 {
        world.deposit("a").await;
    }
    let model = Arc::new(Model::default());
    let policy = || {
        let policy = ProcessorPolicy::projector().with_level(DeliveryLevel::ExactlyOnceEffect);
        policy.with_commit_interval(3_600 * SECOND)
    };
    for _ in 0..3 {
        let runner = world.builder().projector_with(model.clone(), policy());
        let runner = runner.build().unwrap();
        // Nothing is committed, and the process dies.
        let run = runner.run(std::future::pending());
        assert!(tokio::time::timeout(60 * SECOND, run).await.is_err());
        assert_eq!(model.versions("a"), [1, 2, 3, 4, 5]);
    }
}

#[tokio::test(start_paused = true)]
async fn deduplicated_repeats_nothing_whose_position_is_stored_although_the_offset_is_not() {
    let levels = [
        (DeliveryLevel::AtLeastOnce, vec![1, 2, 3, 1, 2, 3, 4]),
        (DeliveryLevel::Deduplicated, vec![1, 2, 3, 4]),
    ];
    for (level, expected) in levels {
        let world = World::new(1);
        let (seen, faults) = (Seen::new(), Faults::none());
        let policy = || from_beginning().with_level(level);
        let runner = world.faulty_builder(&faults);
        let runner = runner
            .listener_with(seen.clone(), policy())
            .build()
            .unwrap();
        let run = tokio::spawn(async move { runner.run(std::future::pending()).await });
        tokio::time::sleep(5 * SECOND).await;
        // The offset can no longer be committed, but positions can be stored.
        faults.set([Fault::Unavailable.on(Op::Commit)]);
        for _ in 0..3 {
            world.deposit("a").await;
        }
        tokio::time::sleep(30 * SECOND).await;
        assert_eq!(
            (seen.of("a"), world.committed(SEEN).await),
            (vec![1, 2, 3], 0)
        );
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        world.deposit("a").await;
        let report = world.catch_up(seen.clone(), policy()).await;
        report.into_result().unwrap();
        assert_eq!(seen.of("a"), expected, "{level:?}");
    }
}

/// The stream and version of a stored position.
fn position(call: &Call<'_>) -> Option<(String, u64)> {
    let Call::Put { row, .. } = call else {
        return None;
    };
    if !row.key.partition.starts_with("pos/") {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
    Some((row.key.sort.clone(), value["v"].as_u64().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn deduplicated_commits_no_offset_past_a_version_whose_position_is_not_stored() {
    let world = World::new(1);
    // The stream and version of each offset.
    let mut log = Vec::new();
    for n in 0..200_u64 {
        let id = (n % 7).to_string();
        world.deposit(&id).await;
        log.push((format!("account#{id}"), n / 7 + 1));
    }
    let stored: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let commits = Arc::new(AtomicU32::new(0));
    let (now_stored, noted, counted) = (stored.clone(), stored.clone(), commits.clone());
    let check = move |commit: &OffsetCommit| {
        let stored = now_stored.lock().unwrap();
        let passed = usize::try_from(commit.next.get()).unwrap();
        for (stream, version) in &log[..passed] {
            let durable = stored.get(stream).copied().unwrap_or(0);
            assert!(
                durable >= *version,
                "{stream}: {version} is passed, {durable} is stored"
            );
        }
        counted.fetch_add(u32::from(passed > 0), Ordering::SeqCst);
    };
    let faults = Faults::seeded(3)
        .with(Fault::Unavailable.on(Op::Put).one_in(3))
        .with(Fault::Delay(SECOND).on(Op::Put).one_in(3).jittered())
        .with_probe(move |moment, call| match (moment, call) {
            (Moment::Done, Call::Put { .. }) => {
                if let Some((stream, version)) = position(call) {
                    noted.lock().unwrap().insert(stream, version);
                }
            }
            (Moment::Reaches, Call::Commit(offsets)) => offsets.iter().for_each(&check),
            _ => {}
        });
    let seen = Seen::new();
    let policy = from_beginning()
        .with_level(DeliveryLevel::Deduplicated)
        .with_commit_interval(SECOND)
        .with_window(30, 1 << 30);
    let runner = world.faulty_builder(&faults);
    let runner = runner.listener_with(seen.clone(), policy).build().unwrap();
    runner
        .run(tokio::time::sleep(600 * SECOND))
        .await
        .into_result()
        .unwrap();
    assert_eq!((seen.len(), world.committed(SEEN).await), (200, 200));
    assert!(commits.load(Ordering::SeqCst) >= 5);
    assert_eq!(stored.lock().unwrap().len(), 7);
}
