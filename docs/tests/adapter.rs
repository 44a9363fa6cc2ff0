//! The adapter of the chapter "Writing an adapter in an afternoon", under the contract suite.

mod event_store {
    use foldstream::ports::EventStore;
    use foldstream_book::adapter::MapEventStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn EventStore> {
        Arc::new(MapEventStore::default())
    }
    foldstream_testkit::event_store_contract! {
        store = fresh,
        with = [atomic_append, unpublished],
    }
}

const CHAPTER: &str = include_str!("../src/adapter.md");
const ADAPTER: &str = include_str!("../adapter/map_event_store.rs");
const SUITE: &str = include_str!("adapter.rs");

/// The lines of a text without their indentation.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

/// The blocks of the chapter that show code of another file, by line.
fn excerpts() -> Vec<Vec<&'static str>> {
    let mut blocks = Vec::new();
    let mut lines = lines(CHAPTER).into_iter();
    while lines.by_ref().any(|line| line == "```rs") {
        blocks.push(lines.by_ref().take_while(|line| *line != "```").collect());
    }
    blocks
}

#[test]
fn the_chapter_shows_the_code_that_passes_the_suite() {
    let (adapter, suite) = (lines(ADAPTER), lines(SUITE));
    let is_in = |file: &[&str], block: &[&str]| file.windows(block.len()).any(|w| w == block);
    let excerpts = excerpts();
    assert!(excerpts.len() >= 8, "{} excerpts", excerpts.len());
    for block in excerpts {
        let is_shown = is_in(&adapter, &block) || is_in(&suite, &block);
        assert!(is_shown, "no file has this code:\n{}", block.join("\n"));
    }
}
