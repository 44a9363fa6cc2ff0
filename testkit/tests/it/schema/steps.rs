//! Versions below an event's newest one, and versions that are recorded late.
use super::*;
use foldstream::{DomainEvent, Upcast, Upcasters};

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CartEvent {
    #[event(version = 3)]
    Added {
        sku: String,
        quantity: u32,
    },
    CheckedOut,
}

fn first_step() -> Upcasters {
    Upcasters::new().with_json("cart", "Added", 1, |payload| {
        payload["quantity"] = 1.into();
        Ok(())
    })
}
fn both_steps() -> Upcasters {
    first_step().with_json("cart", "Added", 2, |payload| {
        payload["sku"] = payload["article"].take();
        Ok(())
    })
}

const FIRST: &str = r#"{"article":"tea"}"#;
const SECOND: &str = r#"{"article":"tea","quantity":2}"#;

#[test]
fn a_version_that_was_never_recorded_needs_an_upcaster_too() {
    let files = Files::new();
    let schema = || files.schema().with_events::<CartEvent>();
    for result in [
        schema().with_upcasters(first_step()).check(),
        schema().with_upcasters(first_step()).write(),
    ] {
        let found = problems(&files, result);
        let missing: Vec<_> = found.iter().filter(|p| p.contains("no upcaster")).collect();
        assert_eq!(
            missing,
            [
                "cart.Added@2 has no upcaster, and newer versions of it are stored: a store may hold events of an older build. \
                 Add an upcaster from version 2, or say `.never_stored(\"cart\", \"Added\", 2)` if no build ever stored it"
            ]
        );
    }
    assert!(!files.types().exists());
    schema().with_upcasters(both_steps()).write().unwrap();
    let skipped = schema().with_upcasters(first_step());
    assert_problem(&files, skipped.check(), "cart.Added@2 has no upcaster");
    skipped.never_stored("cart", "Added", 2).check().unwrap();
}

#[test]
fn a_version_below_a_recorded_one_needs_an_upcaster_also_if_its_event_is_gone() {
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "cart")]
    enum Old {
        #[event(version = 2)]
        Viewed,
        CheckedOut,
    }
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "cart")]
    enum Today {
        CheckedOut,
    }
    let files = Files::new();
    let old = files.schema().with_events::<Old>();
    let retired = |from| Upcasters::new().with("cart", "Viewed", from, |_| Ok(Upcast::Retired));
    old.with_upcasters(retired(1)).write().unwrap();
    let today = files.schema().with_events::<Today>();
    let today = |upcasters| today.clone().with_upcasters(upcasters);
    assert_problem(
        &files,
        today(retired(2)).check(),
        "cart.Viewed@1 has no upcaster",
    );
    today(retired(1).with_all(&retired(2))).check().unwrap();
    let schema = today(retired(2)).never_stored("cart", "Viewed", 1);
    schema.check().unwrap();
}

#[test]
fn what_is_said_never_to_have_been_stored_must_not_have_been() {
    let files = Files::new();
    let schema = || {
        let schema = files.schema().with_golden(files.golden());
        schema
            .with_events::<CartEvent>()
            .with_upcasters(both_steps())
    };
    schema().write().unwrap();
    for (name, version, reason) in [
        ("Added", 3, "it is recorded"),
        ("Added", 4, "it is newer than what this build writes"),
        ("Added", 0, "versions start at 1"),
        ("Addded", 1, "the check knows no event of that name"),
    ] {
        let claimed = schema().never_stored("cart", name, version);
        let beginning = format!(
            "cart.{name}@{version} is said never to have been stored, but {reason}: remove"
        );
        assert_problem(&files, claimed.check(), &beginning);
    }
    put(&files.golden().join("cart.Added@2-many.json"), SECOND);
    assert_problem(
        &files,
        schema().never_stored("cart", "Added", 2).check(),
        "cart.Added@2 is said never to have been stored, but there is a golden payload of it",
    );
    let files = Files::new();
    let new = files
        .schema()
        .with_events::<CartEvent>()
        .with_upcasters(both_steps());
    let found = problems(&files, new.never_stored("cart", "CheckedOut", 1).check());
    assert!(
        found.iter().any(|p| p.contains("but this build writes it")),
        "{found:#?}"
    );
}

#[test]
fn an_upcaster_from_what_this_build_writes_is_a_problem() {
    let files = Files::new();
    let retires = both_steps().with("cart", "CheckedOut", 1, |_| Ok(Upcast::Retired));
    let schema = files
        .schema()
        .with_events::<CartEvent>()
        .with_upcasters(retires);
    assert_problem(
        &files,
        schema.write(),
        "an upcaster starts from cart.CheckedOut@1, which this build writes",
    );
}

/// Builds a service that adopts the check at version 3 and records only that version.
fn adopted() -> (Files, Schema) {
    let files = Files::new();
    let schema = files.schema().with_golden(files.golden());
    let schema = schema
        .with_events::<CartEvent>()
        .with_upcasters(both_steps());
    schema.write().unwrap();
    assert_eq!(files.lines().len(), 2);
    (files, schema)
}

#[test]
fn golden_payloads_of_older_versions_can_be_recorded_late() {
    let (files, schema) = adopted();
    put(&files.golden().join("cart.Added@1.json"), FIRST);
    put(&files.golden().join("cart.Added@2.json"), SECOND);
    put(&files.golden().join("cart.Added@2-label@7.json"), SECOND);
    let found = problems(&files, schema.check());
    assert_eq!(
        found,
        [1, 2].map(|version| format!(
            "cart.Added@{version} is not recorded: run with FOLDSTREAM_BLESS=1, or --write, and check in what it writes"
        ))
    );
    schema.write().unwrap();
    assert_eq!(
        files.lines(),
        [
            "cart.Added@1 untraced",
            "cart.Added@2 untraced",
            "cart.Added@3 {quantity: u32, sku: text}",
            "cart.CheckedOut@1 {}",
        ]
    );
    schema.check().unwrap();
    // From now on these versions are checked like any other.
    let broken = both_steps().with("cart", "Added", 1, |_| Err("lost".into()));
    let found = problems(&files, schema.clone().with_upcasters(broken).check());
    assert!(
        found[0].starts_with("golden/cart.Added@1.json cannot be read"),
        "{found:#?}"
    );
    std::fs::remove_file(files.golden().join("cart.Added@1.json")).unwrap();
    assert_problem(&files, schema.check(), "cart.Added@1 has no golden payload");
}

#[test]
fn payloads_of_an_event_that_was_renamed_can_be_recorded_late() {
    let (files, schema) = adopted();
    let renames = both_steps().with("cart", "Finished", 1, |_| {
        Ok(Upcast::Renamed {
            name: "CheckedOut".into(),
            schema_version: 1,
            payload: "{}".into(),
        })
    });
    put(&files.golden().join("cart.Finished@1.json"), "{}");
    assert_problem(
        &files,
        schema.check(),
        "golden/cart.Finished@1.json is of no recorded event",
    );
    let schema = schema.with_upcasters(renames);
    schema.write().unwrap();
    assert_eq!(files.lines()[2], "cart.Finished@1 untraced");
}

#[test]
fn a_late_payload_that_cannot_be_read_is_not_recorded() {
    let (files, schema) = adopted();
    let before = std::fs::read_to_string(files.types()).unwrap();
    put(
        &files.golden().join("cart.Added@2.json"),
        r#"{"article":7,"quantity":2}"#,
    );
    let found = problems(&files, schema.write());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("golden/cart.Added@2.json cannot be read by this build"));
    assert_eq!(std::fs::read_to_string(files.types()).unwrap(), before);
    // A version that no upcaster lifts is not recorded either.
    let schema = schema.with_upcasters(first_step());
    assert_problem(&files, schema.write(), "cart.Added@2 has no upcaster");
    assert_eq!(std::fs::read_to_string(files.types()).unwrap(), before);
}
