//! The recorded types, compared with the code.
use super::*;
use foldstream::{BoxError, DomainEvent, Upcast, Upcasters};

/// Declares one version of a service in a module of its own.
macro_rules! service {
    ($name:ident { $($body:tt)* }) => {
        mod $name {
            use foldstream::DomainEvent;
            #[derive(Clone, Debug, PartialEq, DomainEvent)]
            #[event(aggregate = "shop.cart")]
            pub(super) enum Event { $($body)* }
        }
    };
}

service!(first { Added { sku: String }, CheckedOut });
service!(reordered { CheckedOut, Added { sku: String } });
service!(grown { Added { sku: String }, CheckedOut, Emptied });
service!(changed { Added { sku: String, quantity: u32 }, CheckedOut });
service!(defaulted { Added { sku: String, #[serde(default)] quantity: u32 }, CheckedOut });
service!(raised { #[event(version = 2)] Added { sku: String, quantity: u32 }, CheckedOut });
service!(renamed { Put { sku: String }, CheckedOut });
service!(renamed_in_rust { #[event(name = "Added")] Put { sku: String }, CheckedOut });
service!(removed { CheckedOut });

fn quantity() -> Upcasters {
    Upcasters::new().with_json("shop.cart", "Added", 1, |payload| {
        payload["quantity"] = 1.into();
        Ok(())
    })
}

fn recorded() -> Files {
    let files = Files::new();
    let schema = files.schema().with_events::<first::Event>();
    assert_eq!(problems(&files, schema.check()).len(), 2);
    schema.write().unwrap();
    schema.check().unwrap();
    files
}

#[test]
fn a_line_has_event_version_hash_and_shape() {
    let files = recorded();
    let text = std::fs::read_to_string(files.types()).unwrap();
    let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
    // These hashes must not change: users have checked in files that contain them.
    assert_eq!(
        lines,
        [
            "shop.cart.Added@1  4f69a90d2c933401  {sku: text}",
            "shop.cart.CheckedOut@1  08f44b07b5901a25  {}",
        ]
    );
}

#[test]
fn the_order_of_variants_means_nothing() {
    let files = recorded();
    files
        .schema()
        .with_events::<reordered::Event>()
        .check()
        .unwrap();
}

#[test]
fn a_new_event_must_be_recorded() {
    let files = recorded();
    let schema = files.schema().with_events::<grown::Event>();
    assert_problem(
        &files,
        schema.check(),
        "shop.cart.Emptied@1 is not recorded",
    );
    schema.write().unwrap();
    schema.check().unwrap();
    assert_eq!(files.lines().len(), 3);
}

#[test]
fn a_changed_shape_under_the_same_version_is_a_problem_that_recording_does_not_solve() {
    let files = recorded();
    let before = files.lines();
    let schema = files.schema().with_events::<changed::Event>();
    for result in [schema.check(), schema.write()] {
        assert_problem(&files, result, "the shape of shop.cart.Added@1 has changed");
    }
    // A field with a default breaks older readers too: they would lose the field.
    let schema = files.schema().with_events::<defaulted::Event>();
    assert_problem(
        &files,
        schema.write(),
        "the shape of shop.cart.Added@1 has changed",
    );
    assert_eq!(files.lines(), before);
}

#[test]
fn a_raised_version_needs_an_upcaster_from_every_recorded_one() {
    let files = recorded();
    let schema = files.schema().with_events::<raised::Event>();
    assert_problem(
        &files,
        schema.write(),
        "shop.cart.Added@1 is recorded and this build writes version 2: add an upcaster from version 1",
    );
    let schema = schema.with_upcasters(quantity());
    assert_problem(&files, schema.check(), "shop.cart.Added@2 is not recorded");
    schema.write().unwrap();
    assert_eq!(
        files.lines(),
        [
            "shop.cart.Added@1 {sku: text}",
            "shop.cart.Added@2 {quantity: u32, sku: text}",
            "shop.cart.CheckedOut@1 {}",
        ]
    );
    schema.check().unwrap();
    // The other direction: the older build is deployed after the newer one has stored events.
    let schema = files.schema().with_events::<first::Event>();
    assert_problem(
        &files,
        schema.check(),
        "shop.cart.Added@2 is recorded, but this build writes version 1",
    );
}

#[test]
fn a_renamed_variant_is_a_vanished_event_unless_its_name_or_an_upcaster_stays() {
    let files = recorded();
    let schema = files.schema().with_events::<renamed::Event>();
    assert_problem(
        &files,
        schema.write(),
        "shop.cart.Added@1 is recorded, but this build has no such event",
    );
    let kept = files.schema().with_events::<renamed_in_rust::Event>();
    kept.check().unwrap();
    let renames = Upcasters::new().with("shop.cart", "Added", 1, |payload| {
        Ok::<_, BoxError>(Upcast::Renamed {
            name: "Put".into(),
            schema_version: 1,
            payload,
        })
    });
    schema.with_upcasters(renames).write().unwrap();
    let retires = Upcasters::new().with("shop.cart", "Added", 1, |_| Ok(Upcast::Retired));
    let files = recorded();
    let removed = files.schema().with_events::<removed::Event>();
    assert_problem(
        &files,
        removed.check(),
        "shop.cart.Added@1 is recorded, but",
    );
    removed.with_upcasters(retires).check().unwrap();
}

#[test]
fn an_aggregate_that_is_not_in_the_check_is_missed() {
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "order")]
    enum OrderEvent {
        Placed,
    }
    let files = recorded();
    let schema = files.schema().with_events::<OrderEvent>();
    let found = problems(&files, schema.check());
    assert_eq!(
        found.iter().filter(|p| p.contains("no such event")).count(),
        2,
        "{found:#?}"
    );
    schema.with_events::<first::Event>().write().unwrap();
}

#[test]
fn a_line_that_was_changed_by_hand_is_noticed() {
    for (from, to, reason) in [
        ("{sku: text}", "{sku: u64}", "the hash is not of this shape"),
        (
            "  {sku: text}",
            "",
            "it is not an event, a hash and a shape",
        ),
        ("shop.cart.Added@1", "Added", "it does not begin with"),
        (
            "CheckedOut@1  08f44b07b5901a25  {}",
            "Added@1  4f69a90d2c933401  {sku: text}",
            "it is there twice",
        ),
    ] {
        let files = recorded();
        let text = std::fs::read_to_string(files.types()).unwrap();
        assert!(text.contains(from));
        put(&files.types(), &text.replace(from, to));
        let schema = files.schema().with_events::<first::Event>();
        let found = problems(&files, schema.write());
        assert!(found.iter().any(|p| p.contains(reason)), "{found:#?}");
    }
}

#[test]
fn a_command_line_checks_or_writes_and_nothing_else() {
    let files = Files::new();
    let schema = files.schema().with_events::<first::Event>();
    assert_eq!(problems(&files, schema.command(Some("--check"))).len(), 2);
    assert!(!files.types().exists());
    for argument in [None, Some("--wirte")] {
        assert_problem(&files, schema.command(argument), "say --check");
    }
    schema.command(Some("--write")).unwrap();
    schema.command(Some("--check")).unwrap();
}

#[test]
#[should_panic(expected = "- shop.cart.Added@1 is not recorded: run with FOLDSTREAM_BLESS=1")]
fn an_assertion_says_everything_that_is_wrong() {
    Files::new().schema().with_events::<first::Event>().assert();
}

#[test]
fn a_file_of_an_older_format_is_read_and_one_of_a_newer_format_is_refused() {
    let files = recorded();
    let text = std::fs::read_to_string(files.types()).unwrap();
    assert!(text.starts_with("# format 2\n"), "{text}");
    let schema = files.schema().with_events::<first::Event>();
    let without = text.replace("# format 2\n", "");
    put(&files.types(), &without);
    schema.check().unwrap();
    schema.write().unwrap();
    assert_eq!(std::fs::read_to_string(files.types()).unwrap(), text);
    for format in ["3", "0", "two"] {
        let newer = text.replace("# format 2\n", &format!("# format {format}\n"));
        put(&files.types(), &newer);
        let found = problems(&files, schema.write());
        let beginning = format!("TYPES is of format {format}, and this build knows formats 1 to 2");
        assert!(found[0].starts_with(&beginning), "{found:#?}");
        assert_eq!(std::fs::read_to_string(files.types()).unwrap(), newer);
    }
}

#[test]
fn an_aggregate_that_is_added_twice_and_a_check_of_nothing_are_problems() {
    let files = recorded();
    let twice = files
        .schema()
        .with_events::<first::Event>()
        .with_events::<grown::Event>();
    let found = problems(&files, twice.check());
    assert!(
        found[0].starts_with("events of the aggregate type \"shop.cart\" were added twice"),
        "{found:#?}"
    );
    let files = Files::new();
    assert_problem(
        &files,
        files.schema().check(),
        "the check has neither events nor snapshots",
    );
}
