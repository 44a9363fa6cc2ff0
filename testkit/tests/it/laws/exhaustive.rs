//! Laws over all sequences up to a length.
use super::{failure, golden};
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, id};
use foldstream_testkit::laws::Laws;

id!(LampId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "lamp")]
enum LampEvent {
    Up,
    Down,
}
use LampEvent::{Down, Up};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    Brighter,
    Darker,
    Nothing,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Lamp {
    level: u8,
}
impl Aggregate for Lamp {
    type Id = LampId;
    type Event = LampEvent;
    fn evolve(&mut self, event: &LampEvent) {
        match event {
            Up => self.level += 1,
            Down => self.level -= 1,
        }
    }
}
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("at the end")]
struct AtTheEnd;
impl Decide<Turn> for Lamp {
    type Error = AtTheEnd;
    fn decide(&self, command: &Turn, _: &Context) -> Decision<Self, AtTheEnd> {
        match (command, self.level) {
            (Turn::Nothing, _) => Ok(vec![]),
            (Turn::Brighter, 3) | (Turn::Darker, 0) => Err(AtTheEnd),
            (Turn::Brighter, _) => Ok(vec![Up]),
            (Turn::Darker, _) => Ok(vec![Down]),
        }
    }
}

const ALL: [Turn; 3] = [Turn::Brighter, Turn::Darker, Turn::Nothing];

#[test]
fn every_history_is_visited_once() {
    // The walks of length n on four levels from the lowest: 1, 1, 2, 3, 5, 8.
    let checked = Laws::<Lamp>::exhaustive(ALL, 5).check();
    assert_eq!(checked.histories(), 1 + 1 + 2 + 3 + 5 + 8);
    assert_eq!(checked.longest(), 5);
    // Each history except the longest is followed by all three commands.
    assert_eq!(checked.nothing(), 1 + 1 + 2 + 3 + 5);
    assert_eq!(
        checked.accepted() + checked.rejected(),
        2 * checked.nothing()
    );
}

#[test]
fn merged_states_are_followed_once_a_level() {
    let checked = Laws::<Lamp>::exhaustive(ALL, 5)
        .with_merged_states()
        .check();
    assert_eq!(checked.histories(), 1 + 1 + 2 + 2 + 2 + 2);
}

#[test]
fn the_first_counterexample_is_a_shortest() {
    let laws =
        Laws::<Lamp>::exhaustive(ALL, 8).with_invariant("not too bright", |lamp| lamp.level < 2);
    golden(
        &failure(|| laws.check()),
        r#"
a law of Lamp is broken: not too bright
  commands:
    1  Brighter -> [Up]
    2  Brighter -> [Up]
  version 2
  the state: Lamp { level: 2 }
as a test:
    Scenario::<Lamp>::given([Up])
        .when(Brighter)
        .then([Up])
        .then_state(|_| todo!("not too bright"));
"#,
    );
}

#[test]
fn too_many_histories_are_refused() {
    let text = failure(|| {
        Laws::<Lamp>::exhaustive(ALL, 60)
            .with_max_histories(50)
            .check()
    });
    assert!(
        text.starts_with("Lamp has more than 50 histories"),
        "{text}"
    );
}
