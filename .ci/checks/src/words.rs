//! Counts how the documentation is written, and compares the counts with limits.
//!
//! Counts cannot tell good prose from bad prose. They find habits that make documentation hard to
//! read: doc comments that open with an indirect question, fragments in place of a first sentence,
//! and comments wider than the code beside them.
mod doc;
#[cfg(test)]
mod tests;

use crate::{error::CheckError, workspace::Workspace};
use doc::{Doc, Kind};
use std::{collections::BTreeMap, fmt};

/// The core, whose doc comments must say enough.
const CORE: &str = "src/";
/// The most characters of a line that is a comment: rustfmt's `comment_width`.
const WIDTH: usize = 100;
/// The most words of a first sentence that counts as a fragment.
const FRAGMENT_WORDS: usize = 3;
/// The most fragments in a hundred doc comments.
const FRAGMENTS_PERCENT: f64 = 5.0;
/// The fewest words of a doc comment of the core, on average and without those of fields.
const WORDS: f64 = 18.0;
/// The fewest examples of the core that run.
const EXAMPLES: usize = 40;
/// First words that make an indirect question of a sentence.
const QUESTIONS: [&str; 8] = [
    "What", "How", "Whether", "Which", "Where", "Why", "Who", "Whose",
];
/// Phrases that comments avoid, and what they use instead.
const PHRASES: [(&str, &str); 5] = [
    ("for ever", "forever"),
    ("anew", "again"),
    ("somebody else", "the name of the actor"),
    ("behind it", "after it, for \"behind\" is about lag"),
    ("at the most", "at most"),
];

/// A tracked Rust file.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    /// Path from the root of the workspace.
    path: &'a str,
    /// Content of the file.
    text: &'a str,
}

/// The counts of one part of the workspace, and of all of it.
#[derive(Debug, Default)]
struct Counts {
    docs: usize,
    fragments: usize,
    /// Words of every doc comment that is not of a field.
    words: Vec<usize>,
    examples: usize,
}

impl Counts {
    fn add(&mut self, doc: &Doc) {
        self.docs += 1;
        self.fragments += usize::from(is_fragment(doc));
        if doc.kind != Kind::Field {
            self.words.push(doc.words);
        }
        self.examples += doc.examples.iter().filter(|e| e.runs).count();
    }

    fn fragments_percent(&self) -> f64 {
        100.0 * self.fragments as f64 / self.docs.max(1) as f64
    }
    fn mean_words(&self) -> f64 {
        self.words.iter().sum::<usize>() as f64 / self.words.len().max(1) as f64
    }
    fn median_words(&self) -> usize {
        let mut words = self.words.clone();
        words.sort_unstable();
        words.get(words.len() / 2).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:5} doc comments, {:4.1} % fragments, {:4.1} words (median {}), {} running examples",
            self.docs,
            self.fragments_percent(),
            self.mean_words(),
            self.median_words(),
            self.examples
        )
    }
}

/// The result of a count: a table for the reader, and every place that breaks a rule.
#[derive(Debug)]
struct Report {
    /// One line for each part of the workspace.
    table: Vec<String>,
    /// One line for each problem; empty if all limits hold.
    problems: Vec<String>,
}

/// Counts the comments of all tracked Rust files, and prints the counts.
pub(crate) fn check(workspace: &Workspace) -> Result<(), CheckError> {
    let mut files = Vec::new();
    for path in workspace
        .tracked
        .iter()
        .filter(|path| path.ends_with(".rs"))
    {
        if let Some(text) = workspace.text(path)? {
            files.push((path.as_str(), text));
        }
    }
    let sources: Vec<_> = files
        .iter()
        .map(|(path, text)| Source { path, text })
        .collect();
    let report = count(&sources);
    println!("{}", report.table.join("\n"));
    match report.problems.as_slice() {
        [] => Ok(()),
        problems => Err(CheckError::Failed(format!(
            "{}\n{} problems; see \"Style\" in CONTRIBUTING.md",
            problems.join("\n"),
            problems.len()
        ))),
    }
}

/// Counts the comments of these files.
fn count(sources: &[Source<'_>]) -> Report {
    let mut parts: BTreeMap<String, Counts> = BTreeMap::new();
    let (mut all, mut core) = (Counts::default(), Counts::default());
    let mut problems = Vec::new();
    for source in sources {
        for doc in doc::of(source.text) {
            parts.entry(part_of(source.path)).or_default().add(&doc);
            all.add(&doc);
            if source.path.starts_with(CORE) {
                core.add(&doc);
                problems.extend(idle_examples(source.path, &doc));
            }
            problems.extend(question(source.path, &doc));
        }
        problems.extend(lines(source));
    }
    problems.extend(limits(&all, &core));
    let mut table: Vec<_> = parts
        .iter()
        .map(|(part, counts)| format!("{part:28} {counts}"))
        .collect();
    table.push(format!("{:28} {core}", "core"));
    table.push(format!("{:28} {all}", "all"));
    Report { table, problems }
}

/// Returns the first two folders of a path, which is fine enough to see who has to write.
fn part_of(path: &str) -> String {
    let folders: Vec<_> = path.split('/').collect();
    folders[..(folders.len() - 1).min(3)].join("/")
}

fn is_fragment(doc: &Doc) -> bool {
    doc.first_sentence.split_whitespace().count() <= FRAGMENT_WORDS
}

fn question(path: &str, doc: &Doc) -> Option<String> {
    let first = doc.first_sentence.split_whitespace().next()?;
    let first = first.trim_matches(|c: char| !c.is_alphanumeric());
    let is_question = QUESTIONS.contains(&first);
    is_question.then(|| {
        let line = doc.line;
        format!("{path}:{line}: opens with {first:?}; say what the item is or does")
    })
}

/// Finds examples that run and cannot fail, and examples that do not run although the core needs no
/// server.
fn idle_examples(path: &str, doc: &Doc) -> Vec<String> {
    let problem = |example: &doc::Example| {
        let line = example.line;
        match (example.runs, example.asserts) {
            (true, false) => Some(format!("{path}:{line}: the example asserts nothing")),
            (false, _) if example.is_rust => Some(format!(
                "{path}:{line}: the example does not run; the core needs no server"
            )),
            _ => None,
        }
    };
    doc.examples.iter().filter_map(problem).collect()
}

/// Finds comments that are too wide or use a phrase of [`PHRASES`].
fn lines(source: &Source<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let comment = line.trim_start();
        if !comment.starts_with("//") {
            continue;
        }
        let (path, number, width) = (source.path, index + 1, line.chars().count());
        // A link or a row of a table cannot be wrapped.
        let can_wrap = !comment.contains("://") && !comment.contains('|');
        if width > WIDTH && can_wrap {
            problems.push(format!(
                "{path}:{number}: {width} characters wide, not {WIDTH}"
            ));
        }
        for (phrase, instead) in PHRASES {
            if has_words(comment, phrase) {
                problems.push(format!("{path}:{number}: {phrase:?}; write {instead}"));
            }
        }
    }
    problems
}

/// Returns true if `text` has these words, not as parts of longer ones.
fn has_words(text: &str, words: &str) -> bool {
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    text.match_indices(words).any(|(at, _)| {
        is_edge(text[..at].chars().next_back()) && is_edge(text[at + words.len()..].chars().next())
    })
}

fn limits(all: &Counts, core: &Counts) -> Vec<String> {
    let mut problems = Vec::new();
    let percent = all.fragments_percent();
    if percent >= FRAGMENTS_PERCENT {
        problems.push(format!(
            "{percent:.1} % of the first sentences have at most {FRAGMENT_WORDS} words; the limit is {FRAGMENTS_PERCENT} %"
        ));
    }
    let words = core.mean_words();
    if words < WORDS {
        problems.push(format!(
            "{words:.1} words per doc comment of the core; at least {WORDS}"
        ));
    }
    if core.examples < EXAMPLES {
        problems.push(format!(
            "{} running examples in the core; at least {EXAMPLES}",
            core.examples
        ));
    }
    problems
}
