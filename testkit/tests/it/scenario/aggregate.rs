//! Scenarios accept what happened, and the message of a failing one names what did not.
use super::failure;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Metadata, Timestamp, Upcast, Upcasters,
    Version, id,
};
use foldstream_testkit::Scenario;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

id!(CartId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CartEvent {
    #[event(version = 2)]
    Added {
        sku: String,
        quantity: u32,
    },
    Closed,
}
use CartEvent::{Added, Closed};

#[derive(Clone, Debug, Default, PartialEq)]
struct Cart {
    items: u32,
    is_closed: bool,
}
impl Aggregate for Cart {
    type Id = CartId;
    type Event = CartEvent;
    fn evolve(&mut self, event: &CartEvent) {
        match event {
            Added { quantity, .. } => self.items += quantity,
            Closed => self.is_closed = true,
        }
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
enum CartError {
    #[error("closed")]
    Closed,
    #[error("nothing in it")]
    Empty,
}
struct Add(u32);
impl Decide<Add> for Cart {
    type Error = CartError;
    fn decide(&self, command: &Add, _: &Context) -> Decision<Self, CartError> {
        if self.is_closed {
            return Err(CartError::Closed);
        }
        Ok(vec![added(command.0)])
    }
}
struct AddAll(Vec<u32>);
impl Decide<AddAll> for Cart {
    type Error = CartError;
    fn decide(&self, command: &AddAll, _: &Context) -> Decision<Self, CartError> {
        Ok(command.0.iter().copied().map(added).collect())
    }
}
struct Close;
impl Decide<Close> for Cart {
    type Error = CartError;
    fn decide(&self, _: &Close, _: &Context) -> Decision<Self, CartError> {
        match self {
            Self {
                is_closed: true, ..
            } => Ok(vec![]),
            Self { items: 0, .. } => Err(CartError::Empty),
            _ => Ok(vec![Closed]),
        }
    }
}
/// A command whose event records the context.
struct Tell;
impl Decide<Tell> for Cart {
    type Error = CartError;
    fn decide(&self, _: &Tell, ctx: &Context) -> Decision<Self, CartError> {
        let sku = format!(
            "{} {} {} {}",
            ctx.stream(),
            ctx.version(),
            ctx.now(),
            ctx.metadata().get("k").unwrap_or("-")
        );
        Ok(vec![Added { sku, quantity: 1 }])
    }
}
/// A command that leads to another event every time.
struct Roll;
impl Decide<Roll> for Cart {
    type Error = CartError;
    fn decide(&self, _: &Roll, _: &Context) -> Decision<Self, CartError> {
        static ROLLS: AtomicU64 = AtomicU64::new(0);
        Ok(vec![added(ROLLS.fetch_add(1, Ordering::Relaxed) as u32)])
    }
}

fn added(quantity: u32) -> CartEvent {
    Added {
        sku: "x".into(),
        quantity,
    }
}

#[test]
fn commands_follow_each_other_and_a_rejected_one_changes_nothing() {
    Scenario::<Cart>::given_nothing()
        .when(Close)
        .then_rejected(CartError::Empty)
        .when(Add(2))
        .then([added(2)])
        .when(Close)
        .then([Closed])
        .when(Add(1))
        .then_rejected(CartError::Closed)
        .then_rejected_with(|reason| assert_eq!(reason.to_string(), "closed"))
        .then_state(|cart| assert_eq!(cart.items, 2))
        .when(Close)
        .then_nothing();
}

#[test]
fn the_context_is_what_the_scenario_says() {
    let tell = |text: &str| Added {
        sku: text.into(),
        quantity: 1,
    };
    Scenario::<Cart>::given_nothing()
        .when(Tell)
        .then([tell("cart#scenario 0 2026-01-01T00:00:00.000000Z -")]);
    Scenario::<Cart>::given([added(1)])
        .and_given([added(1)])
        .of(&CartId::from("c-1"))
        .at(Timestamp::from_micros(1))
        .with_metadata(Metadata::new().with("k", "v"))
        .when(Tell)
        .then([tell("cart#c-1 2 1970-01-01T00:00:00.000001Z v")])
        .into_scenario()
        .at(Timestamp::from_micros(2))
        .when(Tell)
        .then([tell("cart#c-1 3 1970-01-01T00:00:00.000002Z v")])
        .later(Duration::from_secs(1))
        .when(Tell)
        .then([tell("cart#c-1 4 1970-01-01T00:00:01.000002Z v")])
        // As in a repository, a clock that is set back does not yield a time before the last
        // commit.
        .at(Timestamp::from_micros(3))
        .when(Tell)
        .then([tell("cart#c-1 5 1970-01-01T00:00:01.000002Z v")]);
}

#[test]
fn other_events_are_shown_field_by_field_after_the_history() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given([added(1)])
            .when(Add(2))
            .then([added(3), Closed]);
    });
    let expected = "\
the command led to other events
history of cart#scenario:
    1  Added { sku: \"x\", quantity: 1 }
expected (-) and actual (+):
    2    Added {
       -     quantity: 3,
       +     quantity: 2,
         }
    3  - Closed
";
    assert_eq!(text, expected);
}

#[test]
fn a_rejection_where_events_were_expected_is_shown_with_its_reason() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given([added(1), Closed])
            .when(Add(2))
            .then([added(2)]);
    });
    assert!(text.starts_with("the command was rejected\n"), "{text}");
    assert!(text.contains("rejected: Closed"), "{text}");
    assert!(text.contains("    2  Closed"), "{text}");
}

#[test]
fn an_acceptance_where_a_rejection_was_expected_is_shown_with_its_events() {
    for text in [
        failure(|| {
            let _ = Scenario::<Cart>::given_nothing()
                .when(Add(2))
                .then_rejected(CartError::Closed);
        }),
        failure(|| {
            let _ = Scenario::<Cart>::given_nothing()
                .when(Add(2))
                .then_rejected_with(|_| {});
        }),
    ] {
        assert!(
            text.starts_with("the command was accepted\nhistory of cart#scenario: none\n"),
            "{text}"
        );
        assert!(text.contains("quantity: 2"), "{text}");
    }
}

#[test]
fn another_rejection_and_unexpected_events_fail() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .when(Close)
            .then_rejected(CartError::Closed);
    });
    assert!(text.contains("expected: Closed\nactual:   Empty"), "{text}");
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .when(Add(2))
            .then_nothing();
    });
    assert!(text.contains("  1  + Added"), "{text}");
}

#[test]
fn a_decision_that_differs_when_repeated_fails() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing().when(Roll);
    });
    assert!(
        text.starts_with("the decision is not deterministic"),
        "{text}"
    );
}

#[test]
fn an_id_that_names_no_stream_fails() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .of(&CartId::from(""))
            .when(Close);
    });
    assert!(text.contains("names no stream"), "{text}");
}

#[test]
fn events_that_only_moved_are_not_shown_as_others() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .when(AddAll(vec![1, 2, 3]))
            .then([added(2), Closed, added(3)]);
    });
    let expected = "\
the command led to other events
history of cart#scenario: none
expected (-) and actual (+):
    1  + Added { sku: \"x\", quantity: 1 }
    2    Added { sku: \"x\", quantity: 2 }
    2  - Closed
    3    Added { sku: \"x\", quantity: 3 }
";
    assert_eq!(text, expected);
}

#[test]
fn a_given_state_is_decided_on_at_its_version() {
    let state = Cart {
        items: 7,
        is_closed: false,
    };
    let tell = |text: &str| Added {
        sku: text.into(),
        quantity: 1,
    };
    Scenario::given_state(state.clone())
        .at_version(Version::new(40))
        .and_given([added(1)])
        .when(Tell)
        .then([tell("cart#scenario 41 2026-01-01T00:00:00.000000Z -")])
        .then_state_is(Cart { items: 9, ..state });
    let text = failure(|| {
        let _ = Scenario::given_state(Cart::default())
            .at_version(Version::new(40))
            .and_given([added(1)])
            .when(Add(1))
            .then_nothing();
    });
    let expected = "\
the command led to other events
history of cart#scenario:
       a given state at version 40
   41  Added { sku: \"x\", quantity: 1 }
expected (-) and actual (+):
   42  + Added { sku: \"x\", quantity: 1 }
";
    assert_eq!(text, expected);
}

fn upcasters() -> Upcasters {
    Upcasters::new()
        .with_json("cart", "Added", 1, |payload| {
            payload["quantity"] = 1.into();
            Ok(())
        })
        .with("cart", "Viewed", 1, |_| Ok(Upcast::Retired))
}

#[test]
fn a_payload_of_an_older_build_is_lifted_and_a_retired_one_keeps_its_version() {
    Scenario::<Cart>::given_nothing()
        .with_upcasters(upcasters())
        .and_given_stored("Viewed", 1, "{}")
        .and_given_stored("Added", 2, r#"{"sku":"x","quantity":4}"#)
        .and_given_stored("Added", 1, r#"{"sku":"x"}"#)
        .when(Close)
        .then([Closed])
        .then_state_is(Cart {
            items: 5,
            is_closed: true,
        });
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .with_upcasters(upcasters())
            .and_given_stored("Viewed", 1, "{}")
            .when(Close)
            .then_nothing();
    });
    assert!(text.contains("    1  (Viewed, retired)\n"), "{text}");
}

#[test]
fn a_stored_event_that_no_event_comes_of_fails() {
    for (name, version, payload, reason) in [
        (
            "Bought",
            1,
            "{}",
            "knows no event Bought, only [\"Added\", \"Closed\"]",
        ),
        ("Added", 3, "{}", "schema version 3, this build reads 2"),
        ("Added", 2, "{}", "missing field"),
    ] {
        let text = failure(|| {
            let _ = Scenario::<Cart>::given([Closed])
                .with_upcasters(upcasters())
                .and_given_stored(name, version, payload);
        });
        assert!(text.contains(reason), "{text}");
        assert!(text.contains("    1  Closed\n"), "{text}");
    }
}

#[test]
fn another_state_is_shown_by_its_fields() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .when(Add(2))
            .then_state_is(Cart {
                items: 3,
                is_closed: false,
            });
    });
    let expected = "\
the state is another
history of cart#scenario:
    1  Added { sku: \"x\", quantity: 2 }
expected (-) and actual (+):
    Cart {
  -     items: 3,
  +     items: 2,
        is_closed: false,
    }
";
    assert_eq!(text, expected);
}

#[test]
fn an_assertion_that_fails_in_a_closure_is_shown_with_the_history() {
    let cart = || Scenario::<Cart>::given([added(1)]);
    for text in [
        failure(|| {
            let _ = cart()
                .when(Add(2))
                .then_with(|events| assert!(events.is_empty(), "no"));
        }),
        failure(|| {
            let _ = cart()
                .when(Add(2))
                .then_state(|cart| assert_eq!(cart.items, 0, "no"));
        }),
        failure(|| {
            let _ = cart()
                .and_given([Closed])
                .when(Add(2))
                .then_rejected_with(|_| panic!("no"));
        }),
    ] {
        assert!(text.contains("no"), "{text}");
        assert!(
            text.contains("\nhistory of cart#scenario:\n    1  Added"),
            "{text}"
        );
    }
}

#[test]
fn a_rejection_where_a_closure_asserts_on_events_fails() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given_nothing()
            .when(Close)
            .then_with(|_| {});
    });
    assert!(
        text.ends_with("expected: events\nrejected: Empty\n"),
        "{text}"
    );
}

#[test]
fn of_a_long_history_the_end_is_shown() {
    let text = failure(|| {
        let _ = Scenario::<Cart>::given((1..=60).map(added))
            .when(Add(2))
            .then_nothing();
    });
    let expected = "\
the command led to other events
history of cart#scenario:
       ... 10 events before
   11  Added { sku: \"x\", quantity: 11 }
";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_version_after_given_events_is_refused() {
    let added = Added {
        sku: "tea".into(),
        quantity: 1,
    };
    let told = failure(|| {
        let _ = Scenario::<Cart>::given([added]).at_version(Version::new(9));
    });
    assert!(
        told.starts_with(
            "1 events have versions already: say `.at_version(9)` right after `given_state`"
        ),
        "{told}"
    );
}
