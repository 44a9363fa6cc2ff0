use super::*;
use std::path::PathBuf;

const REPOSITORY: &str = "https://github.com/foldstream/foldstream";

/// Returns the problems with the links of `docs/a.md`, which has `docs/b.md` and `README.md` as
/// neighbours.
fn problems(readers: Readers, text: &str) -> Vec<String> {
    let target = tempfile::tempdir().unwrap();
    let page = target.path().join("doc/foldstream/trait.Aggregate.html");
    fs::create_dir_all(page.parent().unwrap()).unwrap();
    fs::write(&page, r#"<h2 id="tymethod.evolve">"#).unwrap();
    let workspace = Workspace::of_files(
        REPOSITORY,
        target.path().to_path_buf(),
        &["README.md", "docs/a.md", "docs/b.md", "src/lib.rs"],
    );
    let documents = [
        ("README.md", "# Read me"),
        ("docs/a.md", text),
        ("docs/b.md", "# One\n## Two: `x`!\n# One"),
    ];
    let parse = |(file, text): (&str, &str)| (file.to_owned(), Document::parse(text));
    let site = Site {
        workspace: &workspace,
        documents: documents.into_iter().map(parse).collect(),
        libraries: vec!["foldstream".into()],
    };
    let links = &site.documents["docs/a.md"].links;
    let wrong = links
        .iter()
        .filter_map(|link| site.check("docs/a.md", readers, link).err());
    wrong.collect()
}

fn good(readers: Readers, text: &str) {
    assert_eq!(problems(readers, text), Vec::<String>::new(), "{text}");
}

fn bad(readers: Readers, text: &str, why: &str) {
    let found = problems(readers, text);
    assert!(
        matches!(&found[..], [only] if only.contains(why)),
        "{text}: {found:?}"
    );
}

#[test]
fn links_to_files_and_headings_must_resolve() {
    for text in [
        "[b](b.md)",
        "[b][ref]\n\n[ref]: ./b.md#two-x",
        "[up](../README.md#read-me)",
        "[folder](../src)",
        "[again](b.md#one-1)",
        "# Here\n[here](#here)",
        "`[not](a-link.md)`",
    ] {
        good(Readers::GitHub, text);
    }
    bad(Readers::GitHub, "[c](c.md)", "no tracked file");
    bad(
        Readers::GitHub,
        "[out](../../x.md)",
        "out of the repository",
    );
    bad(Readers::GitHub, "[b](b.md#three)", "no heading #three");
    bad(Readers::GitHub, "[b](b.md#one-2)", "no heading");
    bad(Readers::GitHub, "[code](../src/lib.rs#L3)", "not Markdown");
    bad(Readers::GitHub, "![image](b.png)", "no tracked file");
    bad(Readers::GitHub, "[here](#there)", "no heading");
}

#[test]
fn what_only_rustdoc_resolves_is_an_error_but_in_its_guides() {
    for text in ["[`Aggregate`]", "[the trait][Aggregate]", "[publisher]"] {
        for readers in [Readers::GitHub, Readers::Everywhere] {
            bad(readers, text, "only rustdoc");
        }
        good(Readers::Rustdoc, text);
    }
    let item = "[run](runner::Runner::run)";
    bad(Readers::GitHub, item, "only rustdoc knows");
    bad(Readers::Everywhere, item, "crates.io and docs.rs");
    good(Readers::Rustdoc, item);
    bad(
        Readers::Rustdoc,
        "[b](../README.md)",
        "cannot link to a file",
    );
}

#[test]
fn a_readme_of_a_package_has_whole_urls() {
    bad(Readers::Everywhere, "[b](b.md)", "blob/main");
    good(
        Readers::Everywhere,
        &format!("[b]({REPOSITORY}/blob/main/docs/b.md#two-x)"),
    );
    good(
        Readers::Everywhere,
        &format!("[src]({REPOSITORY}/tree/main/src)"),
    );
    let gone = format!("[b]({REPOSITORY}/blob/main/docs/gone.md)");
    bad(Readers::Everywhere, &gone, "no tracked file");
    let branch = format!("[b]({REPOSITORY}/blob/other/docs/b.md)");
    bad(Readers::Everywhere, &branch, "only blob/main");
}

#[test]
fn links_into_our_documentation_must_resolve() {
    let page = "https://docs.rs/foldstream/latest/foldstream/trait.Aggregate.html";
    good(
        Readers::Everywhere,
        &format!("[`Aggregate`]({page}#tymethod.evolve)"),
    );
    good(Readers::Everywhere, "[docs](https://docs.rs/foldstream)");
    good(
        Readers::Everywhere,
        "[other](https://docs.rs/serde/latest/serde/nothing.html)",
    );
    bad(
        Readers::Everywhere,
        &format!("[x]({page}#method.gone)"),
        "no item #method.gone",
    );
    let gone = page.replace("Aggregate", "Gone");
    bad(Readers::Everywhere, &format!("[x]({gone})"), "cargo doc");
    let version = page.replace("latest", "0.1.0");
    bad(Readers::Everywhere, &format!("[x]({version})"), "latest");
}

#[test]
fn other_sites_are_checked_for_their_form() {
    good(Readers::GitHub, "<https://example.com/a?b=c>");
    good(Readers::GitHub, "<someone@example.com>");
    bad(Readers::GitHub, "[x](https:/example.com)", "not a URL");
    bad(Readers::GitHub, "[x](https://)", "not a URL");
    bad(Readers::GitHub, "[x](ftp://example.com)", "not a URL");
    bad(
        Readers::GitHub,
        "[x](<https://example.com/a b>)",
        "not a URL",
    );
}

#[test]
fn paths_are_normalised_within_the_repository() {
    let normal = |path: &str| normal(&PathBuf::from(path));
    assert_eq!(normal("docs/../a/./b").as_deref(), Some("a/b"));
    assert_eq!(normal("../a"), None);
    assert_eq!(normal("/etc"), None);
}
