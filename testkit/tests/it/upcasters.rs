//! Every tool uses the upcasters that belong to the event type.
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Upcast, Upcasters, id,
    runner::{EventContext, HandlerResult, ModelId, Projector},
};
use foldstream_testkit::{ProjectorScenario, Scenario, Schema, schema::upcast_golden};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    sync::{Arc, Mutex},
};

id!(BoxId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "box", upcasters = older)]
enum BoxEvent {
    #[event(version = 2)]
    Filled { count: u32 },
}
use BoxEvent::Filled;
fn older() -> Upcasters {
    Upcasters::new()
        .with_json("box", "Filled", 1, |payload| {
            payload["count"] = 5.into();
            Ok(())
        })
        .with("box", "Viewed", 1, |_| Ok(Upcast::Retired))
}
/// Returns upcasters that must not be given, because the type lifts the name itself.
fn twice() -> Upcasters {
    Upcasters::new().with("box", "Viewed", 1, |_| Ok(Upcast::Retired))
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Chest(u32);
impl Aggregate for Chest {
    type Id = BoxId;
    type Event = BoxEvent;
    fn evolve(&mut self, Filled { count }: &BoxEvent) {
        self.0 += count;
    }
}
struct Double;
impl Decide<Double> for Chest {
    type Error = Infallible;
    fn decide(&self, _: &Double, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![Filled { count: self.0 }])
    }
}

#[test]
fn a_scenario_of_an_aggregate_uses_the_upcasters_of_the_type() {
    Scenario::<Chest>::given_nothing()
        .and_given_stored("Viewed", 1, "{}")
        .and_given_stored("Filled", 1, "{}")
        .when(Double)
        .then([Filled { count: 5 }])
        .then_state_is(Chest(10));
}

#[test]
#[should_panic(expected = "box.Viewed is lifted by the upcasters of its type")]
fn a_scenario_refuses_a_name_that_the_type_lifts_itself() {
    let _ = Scenario::<Chest>::given_nothing()
        .with_upcasters(twice())
        .and_given_stored("Filled", 1, "{}");
}

#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<u64, u32>>>);
impl Projector for Counts {
    const NAME: &'static str = "counts";
    type Events = BoxEvent;
    async fn project(&self, Filled { count }: &BoxEvent, ctx: &EventContext) -> HandlerResult {
        self.0.lock().unwrap().insert(ctx.version().get(), *count);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.0.lock().unwrap().clear();
        Ok(())
    }
}

#[test]
fn a_scenario_of_a_projector_uses_the_upcasters_of_the_type() {
    let counts = Counts::default();
    ProjectorScenario::new(counts, async |c: &Counts| c.0.lock().unwrap().clone())
        .when_stored("box#a", "Filled", 1, "{}")
        .then([(1, 5)])
        .when_applied_late("box#a", 1)
        .then_unchanged()
        .when_rebuilt()
        .then_unchanged();
}

#[test]
fn schema_and_golden_payloads_use_the_upcasters_of_the_type() {
    let files = tempfile::tempdir().unwrap();
    let golden = files.path().join("golden");
    fs::create_dir(&golden).unwrap();
    let file = golden.join("box.Filled@1.json");
    fs::write(&file, "{}").unwrap();
    assert_eq!(
        upcast_golden::<BoxEvent>(&file, &Upcasters::new()),
        Some(Filled { count: 5 })
    );
    // The first build, whose types were recorded.
    mod first {
        #[derive(Clone, Debug, PartialEq, foldstream::DomainEvent)]
        #[event(aggregate = "box")]
        pub(super) enum BoxEvent {
            Filled {},
        }
    }
    let schema = || Schema::new(files.path().join("TYPES")).with_golden(&golden);
    schema().with_events::<first::BoxEvent>().write().unwrap();
    let today = || schema().with_events::<BoxEvent>();
    today().write().unwrap();
    let error = today().with_upcasters(twice()).check().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("box.Viewed is lifted by the upcasters of its type"),
        "{error}"
    );
}
