//! The chapters show the hotel's files as they are.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
use std::{collections::BTreeMap, fs, path::Path};

/// The tutorial's chapters, in reading order.
const CHAPTERS: [&str; 5] = ["aggregates", "read_model", "http", "evolving", "testing"];

/// Returns the text of each file as the chapters show it.
///
/// A block belongs to the file that its first line names. An empty line joins the blocks of a file.
fn shown(docs: &Path) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for chapter in CHAPTERS {
        let text = fs::read_to_string(docs.join(format!("src/tutorial/{chapter}.md"))).unwrap();
        for block in text.split("\n```rs\n").skip(1) {
            let (block, _) = block.split_once("\n```\n").expect("the block ends");
            let (name, code) = block.split_once('\n').expect("the block has code");
            let name = name
                .strip_prefix("// hotel/")
                .expect("the block names its file");
            let file = files.entry(name.into()).or_default();
            if !file.is_empty() {
                file.push('\n');
            }
            file.push_str(code);
            file.push('\n');
        }
    }
    files
}

#[test]
fn every_file_of_the_hotel_is_shown_whole_and_as_it_is() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = shown(docs);
    for entry in fs::read_dir(docs.join("hotel")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let file = fs::read_to_string(&path).unwrap();
        let in_book = shown.get(name).map_or("", String::as_str);
        let mut lines = (1..).zip(file.lines().zip(in_book.lines()));
        let first = lines.find(|(_, (here, there))| here != there);
        assert!(
            file == in_book,
            "the chapters show another hotel/{name}; first difference: {first:?}"
        );
    }
}

#[test]
fn every_chapter_is_in_the_summary() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR"));
    let summary = fs::read_to_string(docs.join("src/SUMMARY.md")).unwrap();
    for chapter in CHAPTERS {
        let link = format!("(tutorial/{chapter}.md)");
        assert!(summary.contains(&link), "{chapter}");
    }
}
