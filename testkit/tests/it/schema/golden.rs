//! Golden payloads of the schema check.
use super::*;
use foldstream::{DomainEvent, Upcast, Upcasters};
use foldstream_testkit::schema::upcast_golden;

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CartEvent {
    #[event(version = 3)]
    Added {
        sku: String,
        quantity: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gift: Option<String>,
    },
    CheckedOut,
}

/// Returns upcasters for three versions, a rename and a retirement.
fn upcasters() -> Upcasters {
    Upcasters::new()
        .with_json("cart", "Added", 1, |payload| {
            payload["quantity"] = 1.into();
            Ok(())
        })
        .with_json("cart", "Added", 2, |payload| {
            let sku = payload["article"].take();
            payload["sku"] = sku;
            Ok(())
        })
        .with("cart", "Finished", 1, |_| {
            Ok(Upcast::Renamed {
                name: "CheckedOut".into(),
                schema_version: 1,
                payload: "{}".into(),
            })
        })
        .with("cart", "Viewed", 1, |_| Ok(Upcast::Retired))
}

mod old {
    use foldstream::DomainEvent;
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "cart")]
    pub(super) enum First {
        Added { article: String },
        Finished,
        Viewed { by: String },
    }
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "cart")]
    pub(super) enum Second {
        #[event(version = 2)]
        Added {
            article: String,
            quantity: u32,
        },
        Finished,
        Viewed {
            by: String,
        },
    }
}

/// Records the schema as three successive builds did.
fn history() -> (Files, Schema) {
    let files = Files::new();
    let golden = files.golden();
    let schema = || {
        files
            .schema()
            .with_golden(golden.clone())
            .with_upcasters(upcasters())
    };
    let first = Schema::new(files.types()).with_golden(&golden);
    first.with_events::<old::First>().write().unwrap();
    let second = Upcasters::new().with_json("cart", "Added", 1, |p| {
        p["quantity"] = 1.into();
        Ok(())
    });
    let second = schema().with_upcasters(second).with_events::<old::Second>();
    second.write().unwrap();
    let third = schema().with_events::<CartEvent>();
    third.write().unwrap();
    (files, third)
}

#[test]
fn every_version_that_was_ever_recorded_keeps_its_golden_payload() {
    let (files, schema) = history();
    schema.check().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(files.golden())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "cart.Added@1.json",
            "cart.Added@2.json",
            "cart.Added@3.json",
            "cart.CheckedOut@1.json",
            "cart.Finished@1.json",
            "cart.Viewed@1.json",
        ]
    );
    std::fs::remove_file(files.golden().join("cart.Added@2.json")).unwrap();
    // The event's old form is unknown, so it cannot be recorded.
    for result in [schema.check(), schema.write()] {
        assert_problem(&files, result, "cart.Added@2 has no golden payload");
    }
}

#[test]
fn golden_payloads_tell_what_they_mean_today() {
    let (files, schema) = history();
    let read = |name: &str, text: &str| {
        let file = files.golden().join(name);
        put(&file, text);
        schema.check().unwrap();
        upcast_golden::<CartEvent>(file, &upcasters())
    };
    let added = |quantity| CartEvent::Added {
        sku: "tea".into(),
        quantity,
        gift: None,
    };
    assert_eq!(
        read("cart.Added@1.json", r#"{"article":"tea"}"#),
        Some(added(1))
    );
    let second = r#"{"article":"tea","quantity":4}"#;
    assert_eq!(read("cart.Added@2-many.json", second), Some(added(4)));
    assert_eq!(
        read("cart.Finished@1.json", "{}"),
        Some(CartEvent::CheckedOut)
    );
    assert_eq!(read("cart.Viewed@1.json", r#"{"by":"ann"}"#), None);
}

#[test]
fn a_golden_payload_that_cannot_be_read_is_a_problem() {
    let (files, schema) = history();
    put(
        &files.golden().join("cart.Added@1.json"),
        r#"{"article":7}"#,
    );
    assert_problem(
        &files,
        schema.check(),
        "golden/cart.Added@1.json cannot be read by this build",
    );
    // A broken upcaster is found the same way.
    let (files, schema) = history();
    let broken = upcasters().with("cart", "Added", 2, |_| Err("not yet written".into()));
    let result = schema.with_upcasters(broken).check();
    let found = problems(&files, result);
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn a_golden_payload_of_today_must_be_written_alike() {
    let (files, schema) = history();
    let file = files.golden().join("cart.Added@3-gift.json");
    put(
        &file,
        "{ \"quantity\": 1, \"sku\": \"tea\", \"gift\": \"for Ann\" }\n",
    );
    schema.check().unwrap();
    put(
        &file,
        r#"{"sku":"tea","quantity":1,"gift":null,"note":"hi"}"#,
    );
    assert_problem(
        &files,
        schema.check(),
        "this build writes golden/cart.Added@3-gift.json differently",
    );
}

#[test]
fn a_golden_payload_of_nothing_that_is_recorded_is_a_problem() {
    let (files, schema) = history();
    put(&files.golden().join("cart.Addded@1.json"), "{}");
    assert_problem(
        &files,
        schema.check(),
        "golden/cart.Addded@1.json is of no recorded event",
    );
    std::fs::remove_file(files.golden().join("cart.Addded@1.json")).unwrap();
    // The file would be left out of the check.
    let misnamed = files.golden().join("cart.Added@3-gift.JSON");
    put(&misnamed, "{}");
    assert_problem(
        &files,
        schema.check(),
        "golden/cart.Added@3-gift.JSON is of no recorded event",
    );
    std::fs::remove_file(misnamed).unwrap();
    // Version 30 is not version 3 with a label.
    put(&files.golden().join("cart.Added@30.json"), "{}");
    assert_problem(
        &files,
        schema.check(),
        "golden/cart.Added@30.json is of no recorded event",
    );
}

#[test]
fn recording_keeps_the_golden_payloads_that_are_there() {
    let (files, schema) = history();
    let file = files.golden().join("cart.Added@3.json");
    let own = r#"{"sku":"tea","quantity":7}"#;
    put(&file, own);
    schema.write().unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), own);
    std::fs::rename(&file, files.golden().join("cart.Added@3-seven.json")).unwrap();
    schema.write().unwrap();
    assert!(!file.exists());
}
