use super::*;
use doc::Example;

fn problems(path: &str, text: &str) -> Vec<String> {
    let report = count(&[Source { path, text }]);
    let is_total = |line: &String| !line.contains(".rs:");
    report
        .problems
        .into_iter()
        .filter(|line| !is_total(line))
        .collect()
}

#[test]
fn a_doc_comment_that_opens_with_a_question_is_a_problem() {
    for (text, is_problem) in [
        ("/// What a store may do.\npub struct A;", true),
        ("/// Whose stream it is.\npub struct A;", true),
        ("//! How to test.", true),
        ("/// Whatever a store may do is here.\npub struct A;", false),
        ("/// Says what a store may do.\npub struct A;", false),
        ("// What a plain comment may ask.", false),
    ] {
        assert_eq!(
            !problems("tests/a.rs", text).is_empty(),
            is_problem,
            "{text}"
        );
    }
}

#[test]
fn a_comment_wider_than_the_limit_is_a_problem_unless_it_cannot_be_wrapped() {
    let wide = "x".repeat(WIDTH);
    for (text, is_problem) in [
        (format!("/// {wide}"), true),
        (format!("    // {wide}"), true),
        (format!("/// {}", &wide[..WIDTH - 4]), false),
        (format!("/// https://{wide}"), false),
        (format!("/// | {wide} |"), false),
        (format!("let {wide} = 1;"), false),
    ] {
        assert_eq!(
            !problems("tests/a.rs", &text).is_empty(),
            is_problem,
            "{text}"
        );
    }
}

#[test]
fn a_phrase_is_found_as_whole_words() {
    for (text, is_problem) in [
        ("// It waits for ever.", true),
        ("// It waits for everything.", false),
        ("// Read anew", true),
        ("// The one behind it.", true),
        ("// The one behind items.", false),
    ] {
        assert_eq!(
            !problems("tests/a.rs", text).is_empty(),
            is_problem,
            "{text}"
        );
    }
}

#[test]
fn an_example_of_the_core_runs_and_asserts() {
    for (open, body, is_problem) in [
        ("```", "assert!(true);", false),
        ("```", "let a = 1;", true),
        ("```no_run", "assert!(true);", true),
        ("```ignore", "assert!(true);", true),
        ("```should_panic", "let a = 1;", false),
        ("```compile_fail", "let a = 1;", false),
        ("```text", "a -> b", false),
    ] {
        let text =
            format!("/// Does this and that.\n///\n/// {open}\n/// {body}\n/// ```\nfn a() {{}}");
        assert_eq!(
            !problems("src/a.rs", &text).is_empty(),
            is_problem,
            "{text}"
        );
        assert!(problems("adapters/a.rs", &text).is_empty(), "{text}");
    }
}

#[test]
fn the_totals_have_limits() {
    let fragments = "/// Its place.\nfn a() {}\n".repeat(10);
    let report = count(&[Source {
        path: "src/a.rs",
        text: &fragments,
    }]);
    let found = |text: &str| report.problems.iter().any(|problem| problem.contains(text));
    assert!(
        found("100.0 % of the first sentences"),
        "{:?}",
        report.problems
    );
    assert!(found("2.0 words per doc comment"), "{:?}", report.problems);
    assert!(found("0 running examples"), "{:?}", report.problems);
}

#[test]
fn words_do_not_count_code_and_headings() {
    let text = "/// One two. Three\n/// four.\n///\n/// # Errors\n///\n/// ```\n/// a b c\n/// ```\nfn a() {}";
    let docs = doc::of(text);
    assert_eq!(docs.len(), 1);
    assert_eq!(docs[0].words, 4);
    assert_eq!(docs[0].first_sentence, "One two");
    let example = Example {
        line: 6,
        is_rust: true,
        runs: true,
        asserts: false,
    };
    assert_eq!(docs[0].examples, [example]);
}

#[test]
fn the_kind_of_an_item_is_told_from_its_first_line_of_code() {
    for (code, kind) in [
        ("pub fn a() {}", Kind::Item),
        ("#[must_use]\npub(crate) const fn a() {}", Kind::Item),
        ("pub name: String,", Kind::Field),
        ("name: String,", Kind::Field),
        ("#[serde(\n    default,\n)]\nname: String,", Kind::Field),
        ("Open,", Kind::Variant),
        ("Open(u64),", Kind::Variant),
        ("Open {", Kind::Variant),
        ("macro_rules! a {", Kind::Item),
    ] {
        let text = format!("/// One two three four.\n{code}\n");
        assert_eq!(doc::of(&text)[0].kind, kind, "{code}");
    }
}
