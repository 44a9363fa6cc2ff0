//! The states in snapshots by their STATE_VERSION.
use super::*;
use foldstream::DomainEvent;

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CartEvent {
    CheckedOut,
}
foldstream::id!(CartId);

/// Declares one version of a state in a module of its own.
macro_rules! state {
    ($name:ident, $version:literal, { $($body:tt)* }) => {
        mod $name {
            use super::{CartEvent, CartId};
            #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
            pub(super) struct Cart { $($body)* }
            impl foldstream::Aggregate for Cart {
                type Id = CartId;
                type Event = CartEvent;
                fn evolve(&mut self, _: &CartEvent) {}
            }
            impl foldstream::Snapshot for Cart {
                const STATE_VERSION: u32 = $version;
            }
        }
    };
}
state!(first, 1, { items: Vec<(String, u32)>, is_open: bool });
state!(reordered, 1, { is_open: bool, items: Vec<(String, u32)> });
state!(grown, 1, { items: Vec<(String, u32)>, is_open: bool, #[serde(default)] total: u64 });
state!(raised, 2, { items: Vec<(String, u32)>, is_open: bool, total: u64 });
state!(open, 70_000, { #[serde(flatten)] rest: std::collections::BTreeMap<String, u8> });
state!(renaming, 70_000, { #[serde(flatten, serialize_with = "super::nothing")] rest: std::collections::BTreeMap<String, u8> });

fn nothing<T, S: serde::Serializer>(_: &T, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    serializer.serialize_map(Some(0))?.end()
}

fn schema<A: foldstream::Snapshot>(files: &Files) -> Schema {
    files
        .schema()
        .with_events::<CartEvent>()
        .with_snapshots::<A>()
}

fn recorded() -> Files {
    let files = Files::new();
    let schema = schema::<first::Cart>(&files);
    let found = problems(&files, schema.check());
    assert!(
        found[1].starts_with("snapshot cart@1 is not recorded"),
        "{found:#?}"
    );
    schema.write().unwrap();
    schema.check().unwrap();
    files
}

#[test]
fn a_state_is_recorded_with_its_version_after_all_events() {
    let files = recorded();
    let text = std::fs::read_to_string(files.types()).unwrap();
    assert!(text.starts_with("# format 2\n"), "{text}");
    let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
    // These hashes must not change: users have checked in files that contain them.
    assert_eq!(
        lines,
        [
            "cart.CheckedOut@1  08f44b07b5901a25  {}",
            "snapshot cart@1  0873f8e3a745df33  {is_open: bool, items: [[text, u32]]}",
        ]
    );
    schema::<reordered::Cart>(&files).check().unwrap();
}

#[test]
fn a_changed_state_under_the_same_version_is_a_problem_that_recording_does_not_solve() {
    let files = recorded();
    let before = files.lines();
    let changed = schema::<grown::Cart>(&files);
    for result in [changed.check(), changed.write()] {
        let found = problems(&files, result);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("the shape of the state of snapshot cart@1 has changed"));
        assert!(found[0].contains("recorded  {is_open: bool, items: [[text, u32]]}"));
        assert!(found[0].contains("now       {is_open: bool, items: [[text, u32]], total?: u64}"));
        assert!(found[0].contains("Raise its `STATE_VERSION`"), "{found:#?}");
    }
    assert_eq!(files.lines(), before);
}

#[test]
fn a_raised_state_version_is_recorded_and_never_goes_back() {
    let files = recorded();
    let raised = schema::<raised::Cart>(&files);
    assert_problem(&files, raised.check(), "snapshot cart@2 is not recorded");
    raised.write().unwrap();
    assert_eq!(
        files.lines()[1..],
        [
            "snapshot cart@1 {is_open: bool, items: [[text, u32]]}",
            "snapshot cart@2 {is_open: bool, items: [[text, u32]], total: u64}",
        ]
    );
    raised.check().unwrap();
    assert_problem(
        &files,
        schema::<first::Cart>(&files).write(),
        "snapshot cart@2 is recorded, but this build's STATE_VERSION is 1",
    );
}

#[test]
fn a_recorded_state_that_is_not_in_the_check_is_missed() {
    let files = recorded();
    assert_problem(
        &files,
        files.schema().with_events::<CartEvent>().write(),
        "snapshot cart@1 is recorded, but no state of cart is in the check: add it by `with_snapshots`",
    );
}

#[test]
fn a_state_that_cannot_be_traced_is_guarded_by_a_golden_payload() {
    let files = Files::new();
    let state = || schema::<open::Cart>(&files);
    assert_problem(
        &files,
        state().write(),
        "snapshot cart cannot be traced: a flattened struct",
    );
    let allowed = || state().allow_untraced("snapshot cart");
    let found = problems(&files, allowed().write());
    assert!(
        found[0].contains("name their directory by `with_golden`"),
        "{found:#?}"
    );
    let guarded = || allowed().with_golden(files.golden());
    assert_problem(
        &files,
        guarded().write(),
        "snapshot cart@70000 has no golden payload",
    );
    let golden = files.golden().join("snapshot cart@70000.json");
    put(&golden, r#"{"a":1}"#);
    guarded().write().unwrap();
    assert_eq!(files.lines()[1], "snapshot cart@70000 untraced");

    let differently = schema::<renaming::Cart>(&files).allow_untraced("snapshot cart");
    assert_problem(
        &files,
        differently.with_golden(files.golden()).check(),
        "this build writes golden/snapshot cart@70000.json differently",
    );
    put(&golden, r#"{"a":"one"}"#);
    assert_problem(
        &files,
        guarded().check(),
        "golden/snapshot cart@70000.json cannot be read by this build: raise `STATE_VERSION`",
    );
}

#[test]
fn a_state_that_is_traced_needs_no_golden_payload() {
    let files = Files::new();
    let schema = schema::<first::Cart>(&files).with_golden(files.golden());
    schema.write().unwrap();
    let names: Vec<_> = std::fs::read_dir(files.golden())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["cart.CheckedOut@1.json"]);
    // A payload that exists must be readable.
    put(&files.golden().join("snapshot cart@1-odd.json"), "[]");
    assert_problem(
        &files,
        schema.check(),
        "golden/snapshot cart@1-odd.json cannot be read by this build",
    );
}
