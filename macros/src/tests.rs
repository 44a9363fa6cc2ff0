use super::expand;
use syn::{DeriveInput, Error};

/// Returns the errors of a derive.
fn refused(source: &str) -> Vec<String> {
    let input: DeriveInput = syn::parse_str(source).unwrap();
    let messages = |e: Error| e.into_iter().map(|e| e.to_string()).collect();
    expand(&input).map_or_else(messages, |_| Vec::new())
}

/// Asserts that the derive has exactly one error, whose message contains `message`.
#[track_caller]
fn assert_refused(source: &str, message: &str) {
    let errors = refused(source);
    assert_eq!(errors.len(), 1, "{source}: {errors:?}");
    assert!(errors[0].contains(message), "{source}: {errors:?}");
}

#[test]
fn every_attribute_of_serde_that_has_no_effect_is_refused() {
    let errors = refused(
        r#"#[event(aggregate = "a")]
        #[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
        enum E {
            #[serde(rename = "renamed")]
            First { #[serde(rename = "x")] some_field: u64 },
            Second(#[serde(with = "as_text")] u64),
            #[serde(skip)]
            Third,
        }"#,
    );
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(
        errors
            .iter()
            .all(|e| e.starts_with("no effect on what is stored"))
    );
    assert!(errors[0].contains("put it on the fields"));
    assert!(errors[1].contains("#[event(name = ") && errors[3] == errors[1]);
    assert!(errors[2].contains("Name the field"));
}

#[test]
fn an_event_attribute_on_a_field_is_refused() {
    let source = r#"#[event(aggregate = "a")] enum E { A { #[event(name = "x")] b: u8 } }"#;
    assert_refused(source, "#[serde(rename");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    for (source, message) in [
        (r#"#[event(aggregate = "a b")] enum E { A }"#, "1 to 64"),
        (
            r#"#[event(aggregate = "a", aggregate = "b")] enum E { A }"#,
            "twice",
        ),
        (
            r#"#[event(aggregate = "a", name = "x")] enum E { A }"#,
            "upcasters",
        ),
        ("enum E { A }", "add `#[event(aggregate"),
        (
            r#"#[event(aggregate = "a")] enum E { #[event(name = "")] A }"#,
            "not empty",
        ),
        (
            r#"#[event(aggregate = "a")] enum E { #[event(name = "x\n")] A }"#,
            "control",
        ),
        (
            r#"#[event(aggregate = "a")] enum E { #[event(version = 0)] A }"#,
            "1 to 65535",
        ),
        (
            r#"#[event(aggregate = "a")] enum E { A, #[event(name = "A")] B }"#,
            "used twice",
        ),
        (
            r#"#[event(aggregate = "a")] enum E { A(u8, u8) }"#,
            "name the fields",
        ),
        (r#"#[event(aggregate = "a")] enum E {}"#, "at least one"),
        (
            r#"#[event(aggregate = "a")] enum E<T> { A(T) }"#,
            "no type parameters",
        ),
        (r#"#[event(aggregate = "a")] struct E;"#, "an enum"),
    ] {
        assert_refused(source, message);
    }
}

#[test]
fn upcasters_that_are_no_path_are_refused_with_what_to_write() {
    for (upcasters, message) in [
        (r#""older""#, "without quotes: `upcasters = older`"),
        (
            r#""Self::older""#,
            "without quotes: `upcasters = Self::older`",
        ),
        (r#""older()""#, "expected the path of a function"),
    ] {
        let source =
            format!(r#"#[event(aggregate = "a", upcasters = {upcasters})] enum E {{ A }}"#);
        assert_refused(&source, message);
    }
}

#[test]
fn a_name_that_no_append_takes_is_refused() {
    for code in [
        0x00, 0x1F, 0x7F, 0x9F, 0xFDD0, 0xFDEF, 0xFFFE, 0xFFFF, 0x1_FFFE, 0x10_FFFF,
    ] {
        let name = format!("\\u{{{code:x}}}");
        let source =
            format!(r#"#[event(aggregate = "a")] enum E {{ #[event(name = "A{name}")] A }}"#);
        assert_refused(&source, &format!("leave out U+{code:04X}"));
    }
    for name in ["\u{FDCF}", "\u{FDF0}", "\u{FFFD}", "a b", "Gelöscht"] {
        let source =
            format!(r#"#[event(aggregate = "a")] enum E {{ #[event(name = "{name}")] A }}"#);
        assert_eq!(refused(&source), Vec::<String>::new(), "{name:?}");
    }
}

#[test]
fn attributes_of_serde_on_the_fields_of_a_struct_variant_are_taken() {
    let taken = refused(
        r#"#[event(aggregate = "a", upcasters = Self::older)]
        enum E { A { #[serde(rename = "x", default = "one", skip_serializing_if = "is_one")] b: u8, #[serde(flatten)] c: C } }"#,
    );
    assert_eq!(taken, Vec::<String>::new());
}

#[test]
fn a_field_needs_the_part_of_serde_that_its_attributes_leave_to_its_type() {
    for (attribute, needed) in [
        ("", Some("write and read")),
        ("#[serde(default)]", Some("write and read")),
        (
            "#[serde(skip_serializing_if = \"f\")]",
            Some("write and read"),
        ),
        ("#[serde(serialize_with = \"f\")]", Some("read")),
        ("#[serde(skip_serializing, default)]", Some("read")),
        ("#[serde(deserialize_with = \"f\")]", Some("write")),
        ("#[serde(skip_deserializing)]", Some("write")),
        ("#[serde(skip)]", None),
        ("#[serde(with = \"m\")]", None),
        (
            "#[serde(skip_serializing)] #[serde(skip_deserializing)]",
            None,
        ),
    ] {
        let source = format!(r#"#[event(aggregate = "a")] enum E {{ A {{ {attribute} p: P }} }}"#);
        let code = expand(&syn::parse_str(&source).unwrap()).unwrap();
        let code = code.to_string();
        let asserted = code.split_once("has a type that serde cannot ");
        let asserted = asserted.map(|(_, rest)| rest.split_once(':').unwrap().0);
        assert_eq!(asserted, needed, "{attribute}");
    }
}
