//! Outages are waited for, at every call and for however long.
use super::harness::*;
use foldstream::{
    StreamId, Version,
    runner::{
        DeliveryLevel, EventContext, HandlerError, HandlerResult, ModelId, Position,
        ProcessorPolicy, ProcessorState, Projector, RunnerError,
    },
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op, Rule};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const OUTAGE: Duration = Duration::from_secs(600);

/// Returns true if a call concerns rows of this kind.
fn about(kind: &'static str) -> impl Fn(&Call<'_>) -> bool + Send + Sync + 'static {
    move |call| {
        let partition = match call {
            Call::Get(key) => &key.partition,
            Call::Put { row, .. } => &row.key.partition,
            Call::Range(query) => &query.partition,
            _ => return false,
        };
        partition.starts_with(kind)
    }
}

fn calls() -> Vec<(&'static str, Rule)> {
    let away = |op: Op| Fault::Unavailable.on(op);
    vec![
        ("every read", away(Op::Get)),
        ("every write", away(Op::Put)),
        (
            "the rows of the start",
            away(Op::Get).matching(about("boot/")),
        ),
        (
            "the note of the start",
            away(Op::Put).matching(notes_the_start),
        ),
        ("the park rows", away(Op::Range).matching(about("park/"))),
        ("the letters", away(Op::Range).matching(about("dlq/"))),
        ("the change token", away(Op::Get).matching(about("park/"))),
        ("the positions", away(Op::Get).matching(about("pos/"))),
        ("the ends", away(Op::Offsets)),
        ("the group", away(Op::Subscribe)),
        ("the first commit", away(Op::Commit)),
        ("receiving", away(Op::Next)),
        (
            "a throttled store",
            Fault::Throttled(Some(7 * SECOND)).on([Op::Get, Op::Range]),
        ),
        ("a hanging read", Fault::Delay(60 * SECOND).on(Op::Get)),
    ]
}

/// Deduplicates, and lets a projector fail as its policy says by default.
fn deduplicated() -> ProcessorPolicy {
    ProcessorPolicy::projector()
        .with_level(DeliveryLevel::Deduplicated)
        .with_name("seen")
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_ten_minutes_at_the_start_is_waited_for_whichever_call_it_concerns() {
    for (name, call) in calls() {
        let world = World::new(1);
        world.deposit("a").await;
        let faults = Faults::script([call]);
        let seen = Seen::new();
        let runner = world.faulty_builder(&faults);
        let policy = from_beginning().with_level(DeliveryLevel::Deduplicated);
        let runner = runner.listener_with(seen.clone(), policy).build().unwrap();
        let handle = runner.start();
        tokio::time::sleep(OUTAGE).await;
        assert!(!faults.log().is_empty(), "{name}: the call is needed");
        let is_slow = name == "a hanging read";
        assert!(is_slow || seen.len() == 0, "{name}: the call is needed");
        let health = handle.health();
        let health = health.processor("seen").unwrap();
        // Nothing halts, and nothing is silent about it.
        assert!(!health.state.has_ended(), "{name}: {health:?}");
        assert!(is_slow || health.trouble.is_some(), "{name}: {health:?}");
        faults.set([]);
        tokio::time::sleep(180 * SECOND).await;
        let health = handle.health();
        let health = health.processor("seen").unwrap();
        assert_eq!(health.state, ProcessorState::Running, "{name}: {health:?}");
        assert!(health.trouble.is_none(), "{name}: {health:?}");
        assert_eq!(health.dead_letters, Some(0), "{name}");
        handle.stop();
        handle.wait().await.into_result().unwrap();
        let done = (seen.of("a"), world.committed(SEEN).await);
        assert_eq!(done, (vec![1], 1), "{name}");
    }
}

/// A projector whose database is away until a point in time: it can be neither prepared nor asked
/// for a position.
struct Database {
    until: Instant,
    error: fn() -> HandlerError,
    prepared: Mutex<u32>,
    versions: Mutex<Vec<u64>>,
    is_prepared: bool,
}
impl Database {
    fn away_for(time: Duration, error: fn() -> HandlerError) -> Self {
        Self {
            until: Instant::now() + time,
            error,
            prepared: Mutex::new(0),
            versions: Mutex::default(),
            is_prepared: true,
        }
    }
    fn ask(&self) -> HandlerResult {
        match Instant::now() < self.until {
            true => Err((self.error)()),
            false => Ok(()),
        }
    }
}
impl Projector for Database {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn prepare(&self, model: &ModelId) -> HandlerResult {
        assert_eq!(
            (&*model.processor().to_string(), model.generation()),
            ("seen", 1)
        );
        if self.is_prepared {
            *self.prepared.lock().unwrap() += 1;
            self.ask()?;
        }
        Ok(())
    }
    async fn project(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        self.versions.lock().unwrap().push(ctx.version().get());
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn position(&self, _: &ModelId, _: &StreamId) -> Result<Position, HandlerError> {
        self.ask()?;
        let last = self.versions.lock().unwrap().last().copied();
        Ok(Position::stored(Version::new(last.unwrap_or(0))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_model_that_is_away_at_the_start_is_waited_for_and_no_event_is_parked() {
    let errors: [fn() -> HandlerError; 2] = [
        || HandlerError::transient("connection refused"),
        || HandlerError::throttled(20 * SECOND, "slow down"),
    ];
    for (is_prepared, error) in errors.into_iter().flat_map(|e| [(true, e), (false, e)]) {
        let world = World::new(1);
        world.deposit("a").await;
        let database = Database::away_for(OUTAGE, error);
        let database = Arc::new(Database {
            is_prepared,
            ..database
        });
        let runner = world
            .builder()
            .projector_with(database.clone(), deduplicated());
        let handle = runner.build().unwrap().start();
        tokio::time::sleep(OUTAGE).await;
        let health = handle.health();
        let health = health.processor("seen").unwrap();
        assert!(
            !health.state.has_ended() && health.trouble.is_some(),
            "{health:?}"
        );
        assert_eq!(*database.versions.lock().unwrap(), [0; 0]);
        tokio::time::sleep(60 * SECOND).await;
        let health = handle.health();
        assert_eq!(health.processor("seen").unwrap().parked, Some(0));
        handle.stop();
        handle.wait().await.into_result().unwrap();
        assert_eq!(*database.versions.lock().unwrap(), [1]);
        assert_eq!(world.committed(SEEN).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_model_that_cannot_be_prepared_halts_before_the_group_is_joined() {
    let errors: [fn() -> HandlerError; 3] = [
        || HandlerError::permanent("the schema is of another product"),
        || HandlerError::fatal("no such database"),
        || panic!("index out of bounds"),
    ];
    for (error, text) in errors.into_iter().zip(["schema", "database", "panicked"]) {
        let world = World::new(1);
        world.deposit("a").await;
        let database = Arc::new(Database::away_for(OUTAGE, error));
        let faults = Faults::none();
        let runner = world.faulty_builder(&faults);
        let runner = runner.projector_with(database.clone(), deduplicated());
        let report = runner
            .build()
            .unwrap()
            .run(tokio::time::sleep(OUTAGE))
            .await;
        let RunnerError::Prepare { source, .. } = error_of(&report) else {
            panic!("{report:?}")
        };
        assert!(source.to_string().contains(text), "{source}");
        assert_eq!(*database.prepared.lock().unwrap(), 1, "it is not repeated");
        assert_eq!(faults.calls(Op::Subscribe), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_longer_than_all_retries_is_honoured_by_handlers_and_flushes() {
    let pause = 600 * SECOND;
    let throttled = move || HandlerError::throttled(pause, "Retry-After: 600");
    // The default retries end after five minutes.
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let first_fails = {
        let times = times.clone();
        move || {
            let mut times = times.lock().unwrap();
            times.push(Instant::now());
            if times.len() == 1 {
                Err(throttled())
            } else {
                Ok(())
            }
        }
    };
    let asked = first_fails.clone();
    let seen = Seen::failing(move |_, _, _| asked());
    let world = World::new(1);
    world.deposit("a").await;
    let runner = world
        .builder()
        .listener_with(seen.clone(), from_beginning());
    let report = runner
        .build()
        .unwrap()
        .run(tokio::time::sleep(900 * SECOND))
        .await;
    report.into_result().unwrap();
    assert_eq!((seen.of("a"), world.committed(SEEN).await), (vec![1], 1));

    let world = World::new(1);
    world.deposit("a").await;
    let projector = Flushes(Box::new(first_fails));
    let handler = std::mem::take(&mut *times.lock().unwrap());
    let runner = world.builder().projector(projector).build().unwrap();
    let report = runner.run(tokio::time::sleep(900 * SECOND)).await;
    report.into_result().unwrap();
    assert_eq!(world.committed(SEEN).await, 1);
    let flush = times.lock().unwrap().clone();
    for (what, times) in [("handler", handler), ("flush", flush)] {
        assert!(times.len() >= 2, "{what}");
        let waited = times[1] - times[0];
        assert!(
            waited >= pause && waited < pause + 5 * SECOND,
            "{what}: {waited:?}"
        );
    }
}

struct Flushes(Box<dyn Fn() -> HandlerResult + Send + Sync>);
impl Projector for Flushes {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        (self.0)()
    }
}
