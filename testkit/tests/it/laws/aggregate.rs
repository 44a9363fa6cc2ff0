//! An aggregate for each law that breaks only that law, and one that keeps them all.
use super::{failure, golden};
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, Upcast, Upcasters, id,
};
use foldstream_testkit::{Scenario, laws::Laws};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::{
    cell::Cell,
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

id!(TabId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "tab")]
enum TabEvent {
    Ordered { drink: String, price: i64 },
    Paid { amount: i64 },
    Closed,
}
use TabEvent::{Closed, Ordered, Paid};

#[derive(Clone, Debug, PartialEq)]
enum TabCommand {
    Order { drink: String, price: i64 },
    Pay { amount: i64 },
    Close,
}
use TabCommand::{Close, Order, Pay};

#[derive(Debug, PartialEq, thiserror::Error)]
enum Refused {
    #[error("closed")]
    IsClosed,
    #[error("not paid")]
    Unpaid,
    #[error("more than is owed")]
    TooMuch { owed: i64 },
}

/// Declares a tab: orders are owed until they are paid, and a paid tab can be closed.
macro_rules! tab {
    ($name:ident, decide: $decide:expr, evolve: $evolve:expr) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        struct $name {
            owed: i64,
            is_closed: bool,
        }
        impl Aggregate for $name {
            type Id = TabId;
            type Event = TabEvent;
            fn evolve(&mut self, event: &TabEvent) {
                let evolve: fn(&mut i64, &mut bool, &TabEvent) = $evolve;
                evolve(&mut self.owed, &mut self.is_closed, event);
            }
        }
        impl Decide<TabCommand> for $name {
            type Error = Refused;
            fn decide(&self, command: &TabCommand, ctx: &Context) -> Decision<Self, Refused> {
                let decide: fn(i64, bool, &TabCommand, &Context) -> Result<Vec<TabEvent>, Refused> =
                    $decide;
                decide(self.owed, self.is_closed, command, ctx)
            }
        }
        impl Snapshot for $name {
            const STATE_VERSION: u32 = 1;
        }
    };
}

mod rules;

fn decide(
    owed: i64,
    is_closed: bool,
    command: &TabCommand,
    _: &Context,
) -> Result<Vec<TabEvent>, Refused> {
    match command {
        Close if is_closed => Ok(vec![]),
        _ if is_closed => Err(Refused::IsClosed),
        Order { drink, price } => Ok(vec![Ordered {
            drink: drink.clone(),
            price: *price,
        }]),
        Pay { amount } if *amount > owed => Err(Refused::TooMuch { owed }),
        Pay { amount } => Ok(vec![Paid { amount: *amount }]),
        Close if owed > 0 => Err(Refused::Unpaid),
        Close => Ok(vec![Closed]),
    }
}

fn evolve(owed: &mut i64, is_closed: &mut bool, event: &TabEvent) {
    match event {
        Ordered { price, .. } => *owed += price,
        Paid { amount } => *owed -= amount,
        Closed => *is_closed = true,
    }
}

fn commands() -> impl Strategy<Value = TabCommand> {
    prop_oneof![
        3 => ("[a-z]{1,3}", 1i64..50).prop_map(|(drink, price)| Order { drink, price }),
        3 => (1i64..50).prop_map(|amount| Pay { amount }),
        1 => Just(Close),
    ]
}

/// Creates laws with fixed cases, because the counterexamples are compared with golden files.
fn laws<A: Decide<TabCommand> + PartialEq + fmt::Debug>() -> Laws<A> {
    Laws::new(commands()).with_seed(1)
}

tab!(Tab, decide: decide, evolve: evolve);

#[test]
fn a_correct_aggregate_keeps_all_laws() {
    let checked = Laws::<Tab>::new(commands())
        .with_snapshots()
        .with_duplicates()
        .with_pauses((0u64..3).prop_map(Duration::from_secs))
        .with_ids("[a-z]{1,8}".prop_map(TabId::from))
        .with_id_texts("[a-z0-9]{1,8}")
        .with_upcasters(Upcasters::new().with("tab", "Viewed", 1, |_| Ok(Upcast::Retired)))
        .with_invariant("nobody pays too much", |tab| tab.owed >= 0)
        .never("an order after the end", |history| {
            let end = history.iter().position(|event| *event == Closed);
            end.is_some_and(|end| end + 1 < history.len())
        })
        .with_rule(
            "an order is owed",
            |tab: &Tab, command, decision| match command {
                Order { .. } => tab.is_closed == decision.is_err(),
                _ => true,
            },
        )
        .check();
    assert!(
        checked.accepted() > 0 && checked.rejected() > 0 && checked.nothing() > 0,
        "{checked}"
    );
    assert_eq!(checked.histories(), 256);
}

tab!(
    Forgetful,
    decide: |owed, is_closed, command, ctx| {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if let Order { .. } = command {
            let number = NEXT.fetch_add(1, Ordering::Relaxed) % 2;
            return Ok(vec![Ordered { drink: format!("number {number}"), price: 1 }]);
        }
        decide(owed, is_closed, command, ctx)
    },
    evolve: evolve
);

#[test]
fn a_decision_that_differs_when_repeated_is_caught() {
    let text = failure(|| laws::<Forgetful>().check());
    golden(
        &text,
        r#"
a law of Forgetful is broken: deciding is deterministic
  commands:
    1  Order { drink: "a", price: 1 } -> [Ordered { drink: "number 0", price: 1 }]
  decided again: [Ordered { drink: "number 1", price: 1 }]
as a test:
    Scenario::<Forgetful>::given_nothing()
        .when(Order { drink: "a".into(), price: 1 })
        .then([Ordered { drink: "number 0".into(), price: 1 }]);
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

/// Counts its refusals in a pointer that clones share.
#[derive(Clone, Debug, Default)]
struct Grudge {
    owed: i64,
    refused: Arc<AtomicU32>,
}
impl PartialEq for Grudge {
    fn eq(&self, other: &Self) -> bool {
        self.owed == other.owed
    }
}
impl Aggregate for Grudge {
    type Id = TabId;
    type Event = TabEvent;
    fn evolve(&mut self, event: &TabEvent) {
        evolve(&mut self.owed, &mut false, event);
    }
}
impl Decide<TabCommand> for Grudge {
    type Error = Refused;
    fn decide(&self, command: &TabCommand, ctx: &Context) -> Decision<Self, Refused> {
        let decision = decide(self.owed, false, command, ctx);
        if decision.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }
}

#[test]
fn a_rejection_that_changes_the_state_is_caught() {
    let text = failure(|| laws::<Grudge>().check());
    golden(
        &text,
        r#"
a law of Grudge is broken: a rejected command changes nothing
  commands:
    1  Pay { amount: 1 } -> rejected: TooMuch { owed: 0 }
  the state before: Grudge { owed: 0, refused: 0 }
  the state after:  Grudge { owed: 0, refused: 1 }
as a test:
    Scenario::<Grudge>::given_nothing()
        .when(Pay { amount: 1 })
        .then_rejected(TooMuch { owed: 0 })
        .then_state(|state| assert_eq!(format!("{state:?}"), "Grudge { owed: 0, refused: 0 }"));
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

thread_local! {
    static FOLDED: Cell<i64> = const { Cell::new(0) };
}
tab!(
    Drifting,
    decide: decide,
    evolve: |owed, is_closed, event| {
        // The fold depends on something other than the events.
        FOLDED.set(FOLDED.get() + 1);
        *is_closed = FOLDED.get() % 2 == 0;
        evolve(owed, &mut false, event);
    }
);

#[test]
fn a_replay_that_leads_elsewhere_is_caught() {
    let text = failure(|| laws::<Drifting>().check());
    golden(
        &text,
        r#"
a law of Drifting is broken: the replay of the stored events is the state
  commands:
    1  Order { drink: "a", price: 1 } -> [Ordered { drink: "a", price: 1 }]
  the state: Drifting { owed: 1, is_closed: false }
  but found: Drifting { owed: 1, is_closed: true }
as a test:
    Scenario::<Drifting>::given_nothing()
        .when(Order { drink: "a".into(), price: 1 })
        .then([Ordered { drink: "a".into(), price: 1 }])
        .then_state(|state| assert_eq!(format!("{state:?}"), "Drifting { owed: 1, is_closed: false }"));
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

/// A tab whose snapshots forget that it is closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Skipping {
    owed: i64,
    #[serde(skip)]
    is_closed: bool,
}
impl Aggregate for Skipping {
    type Id = TabId;
    type Event = TabEvent;
    fn evolve(&mut self, event: &TabEvent) {
        evolve(&mut self.owed, &mut self.is_closed, event);
    }
}
impl Decide<TabCommand> for Skipping {
    type Error = Refused;
    fn decide(&self, command: &TabCommand, ctx: &Context) -> Decision<Self, Refused> {
        decide(self.owed, self.is_closed, command, ctx)
    }
}
impl Snapshot for Skipping {
    const STATE_VERSION: u32 = 1;
}

#[test]
fn a_snapshot_that_forgets_is_caught() {
    laws::<Skipping>().check();
    let text = failure(|| laws::<Skipping>().with_snapshots().check());
    golden(
        &text,
        r#"
a law of Skipping is broken: a snapshot at any cut and the tail make the full fold
  commands:
    1  Close -> [Closed]
  the state: Skipping { owed: 0, is_closed: true }
  but from the snapshot at version 1, {"owed":0}: Skipping { owed: 0, is_closed: false }
as a test:
    Scenario::<Skipping>::given_nothing()
        .when(Close)
        .then([Closed])
        .then_state(|state| {
            let stored = serde_json::to_vec(state).unwrap();
            let read: Skipping = serde_json::from_slice(&stored).unwrap();
            assert_eq!(read, *state);
        });
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

/// A tab whose snapshots cannot be read back, because JSON has no NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Unreadable {
    ratio: f64,
}
impl Aggregate for Unreadable {
    type Id = TabId;
    type Event = TabEvent;
    fn evolve(&mut self, _: &TabEvent) {
        self.ratio = f64::INFINITY;
    }
}
impl Decide<TabCommand> for Unreadable {
    type Error = Refused;
    fn decide(&self, command: &TabCommand, ctx: &Context) -> Decision<Self, Refused> {
        decide(0, false, command, ctx)
    }
}
impl Snapshot for Unreadable {
    const STATE_VERSION: u32 = 1;
}

#[test]
fn a_snapshot_that_cannot_be_read_is_caught() {
    let text = failure(|| laws::<Unreadable>().with_snapshots().check());
    golden(
        &text,
        r#"
a law of Unreadable is broken: a snapshot at any cut and the tail make the full fold
  commands:
    1  Order { drink: "a", price: 1 } -> [Ordered { drink: "a", price: 1 }]
  the snapshot {"ratio":null} cannot be read: invalid type: null, expected f64 at line 1 column 13
as a test:
    Scenario::<Unreadable>::given_nothing()
        .when(Order { drink: "a".into(), price: 1 })
        .then([Ordered { drink: "a".into(), price: 1 }])
        .then_state(|state| {
            let stored = serde_json::to_vec(state).unwrap();
            let read: Unreadable = serde_json::from_slice(&stored).unwrap();
            assert_eq!(read, *state);
        });
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "note")]
enum NoteEvent {
    Written {
        text: String,
        #[serde(rename(deserialize = "rating"), default)]
        stars: u8,
    },
}
use NoteEvent::Written;
#[derive(Clone, Debug, Default, PartialEq)]
struct Note {
    stars: u8,
}
#[derive(Clone, Debug)]
struct Write(String, u8);
impl Aggregate for Note {
    type Id = TabId;
    type Event = NoteEvent;
    fn evolve(&mut self, event: &NoteEvent) {
        let Written { stars, .. } = event;
        self.stars = *stars;
    }
}
impl Decide<Write> for Note {
    type Error = std::convert::Infallible;
    fn decide(&self, command: &Write, _: &Context) -> Decision<Self, Self::Error> {
        Ok(vec![Written {
            text: command.0.clone(),
            stars: command.1,
        }])
    }
}

#[test]
fn an_event_that_loses_a_field_is_caught() {
    let commands = ("[a-z]{0,3}", 0u8..5).prop_map(|(text, stars)| Write(text, stars));
    let text = failure(|| Laws::<Note>::new(commands).with_seed(1).check());
    golden(
        &text,
        r#"
a law of Note is broken: events survive encode, upcast and decode
  commands:
    1  Write("", 1) -> [Written { text: "", stars: 1 }]
  version 1: Written { text: "", stars: 1 }
  is read as: Written { text: "", stars: 0 }
  stored: Written {"text":"","stars":1}
as a test:
    Scenario::<Note>::given_nothing()
        .when(Write("".into(), 1))
        .then([Written { text: "".into(), stars: 1 }]);
    let event = Written { text: "".into(), stars: 1 };
    let mut stored = Vec::new();
    event.encode(&mut stored).unwrap();
    assert_eq!(NoteEvent::decode(event.type_index(), &stored).unwrap(), event);
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

#[test]
fn an_upcaster_that_takes_todays_events_away_is_caught() {
    let upcasters = Upcasters::new().with("tab", "Paid", 1, |_| Ok(Upcast::Retired));
    let text = failure(|| laws::<Tab>().with_upcasters(upcasters).check());
    golden(
        &text,
        r#"
a law of Tab is broken: events survive encode, upcast and decode
  commands:
    1  Order { drink: "a", price: 7 } -> [Ordered { drink: "a", price: 7 }]
    2  Pay { amount: 1 } -> [Paid { amount: 1 }]
  version 2 is not read: Paid { amount: 1 }
  stored: Ordered {"drink":"a","price":7}, Paid {"amount":1}
as a test:
    Scenario::<Tab>::given([Ordered { drink: "a".into(), price: 7 }])
        .when(Pay { amount: 1 })
        .then([Paid { amount: 1 }]);
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

tab!(
    Switch,
    decide: |owed, _, command, _| match command {
        Order { .. } if owed == 0 => Ok(vec![Ordered { drink: "on".into(), price: 1 }]),
        Pay { .. } if owed > 0 => Ok(vec![Paid { amount: 1 }]),
        _ => Ok(vec![]),
    },
    evolve: evolve
);

#[test]
fn a_duplicate_of_a_command_that_had_nothing_to_do_is_caught() {
    laws::<Switch>().check();
    let text = failure(|| laws::<Switch>().with_duplicates().check());
    golden(
        &text,
        r#"
a law of Switch is broken: a duplicate command changes nothing
  commands:
    1  Pay { amount: 1 } -> []
    2  Order { drink: "a", price: 1 } -> [Ordered { drink: "on", price: 1 }]
  command 1 again, with its id: [Paid { amount: 1 }]
as a test:
    Scenario::<Switch>::given([Ordered { drink: "on".into(), price: 1 }])
        .when(Pay { amount: 1 })
        .then_nothing();
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

/// An id that reads "007" as "7".
#[derive(Clone, Debug)]
struct Trimmed(String);
impl fmt::Display for Trimmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for Trimmed {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim_start_matches('0').into()))
    }
}
#[derive(Clone, Debug, Default, PartialEq)]
struct Numbered;
impl Aggregate for Numbered {
    type Id = Trimmed;
    type Event = TabEvent;
    fn evolve(&mut self, _: &TabEvent) {}
}
impl Decide<TabCommand> for Numbered {
    type Error = Refused;
    fn decide(&self, command: &TabCommand, ctx: &Context) -> Decision<Self, Refused> {
        decide(0, false, command, ctx)
    }
}

#[test]
fn an_id_that_is_not_what_its_text_says_is_caught() {
    laws::<Numbered>().check();
    let ids = "[0-9]{1,3}";
    let text = failure(|| laws::<Numbered>().with_ids(ids.prop_map(Trimmed)).check());
    golden(
        &text,
        r#"
a law of Numbered is broken: an id is what its text says
  "0" is read as an id that shows itself as ""
as a test:
    let id: Trimmed = "0".parse().unwrap();
    assert_eq!(id.to_string(), "0");
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
    assert_eq!(
        failure(|| laws::<Numbered>().with_id_texts(ids).check()),
        text
    );
}

#[test]
fn few_cases_that_are_all_rejected_by_bad_luck_are_no_failure() {
    for seed in 0..20 {
        let checked = Laws::<Tab>::new(commands())
            .with_cases(1)
            .with_seed(seed)
            .check();
        assert!(checked.accepted() > 0);
    }
}
