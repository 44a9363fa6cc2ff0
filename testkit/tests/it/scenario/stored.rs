//! Scenarios store events as a repository does, and refuse what a repository refuses.
use super::failure;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Metadata, Repository, Snapshot, Timestamp,
    Upcast, Upcasters, id,
    ports::{Append, Capabilities},
};
use foldstream_testkit::{
    InMemoryEventStore, ListenerScenario, PipelineScenario, ProjectorScenario, Scenario,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, convert::Infallible};

id!(GridId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "grid")]
enum GridEvent {
    Filled {
        cells: BTreeMap<(u8, u8), u8>,
    },
    Signed {
        #[serde(skip)]
        author: String,
    },
    Laid {
        egg: Option<Option<u8>>,
    },
    Weighed {
        grams: f64,
    },
    Painted {
        colors: String,
    },
    Ticked,
}
use GridEvent::{Filled, Laid, Painted, Signed, Ticked, Weighed};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Grid {
    ticks: u32,
    #[serde(skip)]
    is_painted: bool,
    weight: f64,
}
impl Aggregate for Grid {
    type Id = GridId;
    type Event = GridEvent;
    fn evolve(&mut self, event: &GridEvent) {
        match event {
            Ticked => self.ticks += 1,
            Painted { .. } => self.is_painted = true,
            // Dividing by zero yields a state that JSON cannot represent.
            Weighed { grams } => self.weight = 1.0 / grams,
            Laid { .. } => panic!("no eggs"),
            Filled { .. } | Signed { .. } => {}
        }
    }
}
impl Snapshot for Grid {
    const STATE_VERSION: u32 = 1;
}
#[derive(Clone)]
struct Do(Vec<GridEvent>);
impl Decide<Do> for Grid {
    type Error = Infallible;
    fn decide(&self, Do(events): &Do, _: &Context) -> Decision<Self, Infallible> {
        Ok(events.clone())
    }
}

fn filled() -> GridEvent {
    Filled {
        cells: [((1, 2), 3)].into(),
    }
}
fn signed() -> GridEvent {
    Signed {
        author: "ann".into(),
    }
}
fn painted(bytes: usize) -> GridEvent {
    Painted {
        colors: "x".repeat(bytes),
    }
}
const OFF_THE_SCALE: GridEvent = Weighed { grams: f64::NAN };

/// Lists events that no repository stores, with the reason.
fn not_storable() -> Vec<(Vec<GridEvent>, &'static str)> {
    vec![
        (
            vec![filled()],
            "event grid.Filled (1 of 1) cannot be stored: it cannot be encoded",
        ),
        (
            vec![Ticked, signed()],
            "event grid.Signed (2 of 2) cannot be stored: it is decoded as a different value",
        ),
        (
            vec![Laid { egg: Some(None) }],
            "it is decoded as a different value",
        ),
        (vec![OFF_THE_SCALE], "what was encoded cannot be decoded"),
        (vec![painted(390 * 1024)], "limit"),
    ]
}

/// Lists commands that no store accepts, although it accepts each of their events.
fn not_one_commit() -> Vec<(Vec<GridEvent>, &'static str)> {
    vec![
        (
            vec![Ticked; Append::MAX_EVENTS + 1],
            "has at most 65536 events, this one has 65537",
        ),
        (vec![painted(380 * 1024); 11], "limit"),
    ]
}

fn repository_refuses(events: Vec<GridEvent>) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let grids = Repository::<Grid>::new(InMemoryEventStore::new());
    runtime
        .block_on(grids.execute(&"a".into(), Do(events)))
        .is_err()
}

#[test]
fn a_scenario_refuses_the_events_of_a_command_that_a_repository_refuses() {
    for (events, reason) in not_storable().into_iter().chain(not_one_commit()) {
        assert!(repository_refuses(events.clone()), "{reason}");
        let text = failure(|| drop(Scenario::<Grid>::given([Ticked]).when(Do(events.clone()))));
        assert!(
            text.starts_with("the events of the command cannot be stored: "),
            "{text}"
        );
        assert!(text.contains(reason), "{text}");
        assert!(
            text.contains("\nhistory of grid#scenario:\n    1  Ticked\n"),
            "{text}"
        );
        assert!(text.len() < 2000, "{} bytes of text", text.len());
    }
    // A scenario accepts what a repository stores: each limit itself, but NaN nowhere.
    Scenario::<Grid>::given_nothing()
        .when(Do(vec![painted(380 * 1024); 10]))
        .then_with(|events| assert_eq!(events.len(), 10))
        .when(Do(vec![Ticked; Append::MAX_EVENTS]))
        .then_state(|grid| assert_eq!(grid.ticks, 65_536));
}

#[test]
fn a_given_event_that_no_stream_can_hold_fails_whatever_is_set_later() {
    for (events, reason) in not_storable() {
        let text = failure(|| drop(Scenario::<Grid>::given(events.clone()).when(Do(vec![]))));
        assert!(
            text.starts_with("a given event cannot be stored, so no stream can hold it: "),
            "{text}"
        );
        assert!(text.contains(reason), "{text}");
    }
    // A given history consists of any number of commits.
    for (events, _) in not_one_commit() {
        Scenario::<Grid>::given(events)
            .when(Do(vec![]))
            .then_nothing();
    }
    let retired = Upcasters::new().with("grid", "Ticked", 1, |_| Ok(Upcast::Retired));
    let text = failure(|| {
        drop(
            Scenario::<Grid>::given([Ticked])
                .with_upcasters(retired.clone())
                .when(Do(vec![])),
        );
    });
    assert!(text.contains("an upcaster retires it"), "{text}");
    let text = failure(|| {
        drop(
            Scenario::<Grid>::given_nothing()
                .with_upcasters(retired.clone())
                .when(Do(vec![Ticked])),
        );
    });
    assert!(text.contains("an upcaster retires it"), "{text}");
}

#[test]
fn metadata_and_times_that_no_commit_may_have_fail() {
    let when = |metadata: Metadata, now: Timestamp| {
        let scenario = Scenario::<Grid>::given_nothing()
            .with_metadata(metadata)
            .at(now);
        drop(scenario.when(Do(vec![Ticked])).then([Ticked]));
    };
    let now = Timestamp::from_micros(0);
    let full = |bytes| Metadata::new().with("k", "x".repeat(bytes));
    when(full(Append::MAX_METADATA_BYTES - 100), now);
    for (metadata, now, reason) in [
        (full(Append::MAX_METADATA_BYTES), now, "limit"),
        (
            Metadata::new().with_correlation_id("a\nb"),
            now,
            "correlation id",
        ),
        (
            Metadata::new(),
            Timestamp::from_micros(i64::MAX),
            "the years 0 to 9999",
        ),
        (
            Metadata::new(),
            Timestamp::from_micros(i64::MIN),
            "the years 0 to 9999",
        ),
    ] {
        let text = failure(|| when(metadata.clone(), now));
        assert!(
            text.starts_with("the events of the command cannot be stored: "),
            "{text}"
        );
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn the_limits_are_those_of_the_store_that_the_scenario_names() {
    let capabilities = || Capabilities::new(1000).with_max_event_bytes(500);
    let scenario = || Scenario::<Grid>::given_nothing().with_capabilities(capabilities());
    scenario().when(Do(vec![painted(400); 2])).then_with(|_| {});
    for events in [vec![painted(500)], vec![painted(400); 3]] {
        let text = failure(|| drop(scenario().when(Do(events.clone()))));
        assert!(
            text.starts_with("the events of the command cannot be stored: "),
            "{text}"
        );
    }
    let large = Capabilities::new(10_000_000).with_max_event_bytes(1_000_000);
    Scenario::<Grid>::given([painted(500_000)])
        .with_capabilities(large)
        .when(Do(vec![painted(500_000)]))
        .then_with(|_| {});
}

/// A note that equals other notes with other texts, so a comparison does not see a lost text.
#[derive(Clone, Debug, DomainEvent)]
#[event(aggregate = "note")]
enum NoteEvent {
    Written {
        id: u8,
        #[serde(skip)]
        text: String,
    },
}
impl PartialEq for NoteEvent {
    fn eq(&self, other: &Self) -> bool {
        let (Self::Written { id, .. }, Self::Written { id: other, .. }) = (self, other);
        id == other
    }
}
#[derive(Clone, Debug, Default, PartialEq)]
struct Note(String);
impl Aggregate for Note {
    type Id = GridId;
    type Event = NoteEvent;
    fn evolve(&mut self, NoteEvent::Written { text, .. }: &NoteEvent) {
        self.0.clone_from(text);
    }
}
struct Write;
impl Decide<Write> for Note {
    type Error = Infallible;
    fn decide(&self, _: &Write, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![written()])
    }
}
fn written() -> NoteEvent {
    NoteEvent::Written {
        id: 1,
        text: "milk".into(),
    }
}

#[test]
fn the_state_is_the_fold_of_what_a_later_load_reads() {
    Scenario::<Note>::given_nothing()
        .when(Write)
        .then([written()])
        .then_state_is(Note(String::new()));
    Scenario::<Note>::given([written()])
        .when(Write)
        .then_state_is(Note(String::new()));
}

#[test]
fn a_state_goes_through_a_snapshot_where_the_scenario_has_them() {
    // A scenario without snapshots cannot notice: it folds the state from events each time.
    Scenario::<Grid>::given_nothing()
        .when(Do(vec![painted(1)]))
        .then_state(|grid| assert!(grid.is_painted));
    for forgetful in [
        Scenario::<Grid>::given_nothing().when(Do(vec![painted(1), Ticked])),
        Scenario::<Grid>::given([painted(1), Ticked]).when(Do(vec![])),
        Scenario::given_state(Grid {
            ticks: 1,
            is_painted: true,
            weight: 0.0,
        })
        .when(Do(vec![])),
    ] {
        let _ = forgetful.then_state(|grid| assert!(grid.is_painted));
    }
    for forgetful in [
        Scenario::<Grid>::given_nothing()
            .with_snapshots()
            .when(Do(vec![painted(1), Ticked])),
        Scenario::<Grid>::given([painted(1), Ticked])
            .with_snapshots()
            .when(Do(vec![])),
        Scenario::given_state(Grid {
            ticks: 1,
            is_painted: true,
            weight: 0.0,
        })
        .with_snapshots()
        .when(Do(vec![])),
    ] {
        let _ = forgetful.then_state(|grid| assert_eq!((grid.ticks, grid.is_painted), (1, false)));
    }
    let text = failure(|| {
        let weighed = Do(vec![Weighed { grams: 0.0 }]);
        drop(
            Scenario::<Grid>::given_nothing()
                .with_snapshots()
                .when(weighed),
        );
    });
    assert!(
        text.starts_with("the state cannot be stored as a snapshot: the payload cannot be encoded"),
        "{text}"
    );
    assert!(text.contains("    1  Weighed { grams: 0.0 }\n"), "{text}");
}

#[test]
fn a_fold_that_panics_is_shown_with_the_history() {
    let laid = || Laid { egg: None };
    for text in [
        failure(|| drop(Scenario::<Grid>::given([Ticked]).when(Do(vec![laid()])))),
        failure(|| drop(Scenario::<Grid>::given([Ticked, laid()]).when(Do(vec![])))),
    ] {
        let expected = "\
no eggs
history of grid#scenario:
    1  Ticked
    2  Laid { egg: None }
";
        assert_eq!(text, expected);
    }
}

mod handled {
    use super::*;
    use foldstream::runner::{EventContext, HandlerResult, Listener, ModelId, Projector};

    struct Nothing;
    impl Listener for Nothing {
        const NAME: &'static str = "nothing";
        type Events = GridEvent;
        async fn handle(&self, _: &GridEvent, _: &EventContext) -> HandlerResult {
            Ok(())
        }
    }
    impl Projector for Nothing {
        const NAME: &'static str = "nothing";
        type Events = GridEvent;
        async fn project(&self, _: &GridEvent, _: &EventContext) -> HandlerResult {
            Ok(())
        }
        async fn reset(&self, _: &ModelId) -> HandlerResult {
            Ok(())
        }
    }

    #[test]
    fn events_that_cannot_be_stored_are_neither_given_to_a_handler_nor_delivered() {
        let none = async |_: &Nothing| ();
        for (events, reason) in not_storable() {
            for text in [
                failure(|| drop(ListenerScenario::new(Nothing, none).given("a", events.clone()))),
                failure(|| drop(ListenerScenario::new(Nothing, none).when("a", events.clone()))),
                failure(|| drop(ProjectorScenario::new(Nothing, none).given("a", events.clone()))),
                failure(|| {
                    drop(
                        ProjectorScenario::new(Nothing, none)
                            .given_undelivered("a", events.clone()),
                    );
                }),
                failure(|| drop(ProjectorScenario::new(Nothing, none).when("a", events.clone()))),
                failure(|| drop(PipelineScenario::new().given::<Grid>("a", events.clone()))),
                failure(|| drop(PipelineScenario::new().execute::<Grid>("a", Do(events.clone())))),
            ] {
                assert!(text.contains("grid#a c"), "{text}");
                assert!(text.contains(reason), "{text}");
            }
        }
    }
}
