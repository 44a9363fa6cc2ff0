//! The doc comments of a file, found line by line, because rustfmt puts each on lines of its own.

/// A doc comment with its counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Doc {
    /// The number of its first line, from 1.
    pub(super) line: usize,
    pub(super) kind: Kind,
    pub(super) first_sentence: String,
    /// The number of words outside code blocks and headings.
    pub(super) words: usize,
    pub(super) examples: Vec<Example>,
}

/// The kind of item that a doc comment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Module,
    Field,
    Variant,
    Item,
}

/// A code block of a doc comment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Example {
    /// The line that opens the block, from 1.
    pub(super) line: usize,
    /// True for Rust code, whether it runs or not.
    pub(super) is_rust: bool,
    /// True for Rust code that is compiled and run.
    pub(super) runs: bool,
    /// True if a line of the code asserts something.
    pub(super) asserts: bool,
}

/// Finds the doc comments of a file.
pub(super) fn of(text: &str) -> Vec<Doc> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let mut docs = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(marker) = marker_of(lines[at]) else {
            at += 1;
            continue;
        };
        let is_more = |line: &&&str| marker_of(line) == Some(marker);
        let count = lines[at..].iter().take_while(is_more).count();
        let body: Vec<&str> = lines[at..at + count]
            .iter()
            .map(|line| line[marker.len()..].strip_prefix(' ').unwrap_or(""))
            .collect();
        let kind = match marker {
            "//!" => Kind::Module,
            _ => kind_of(&lines[at + count..]),
        };
        docs.push(read(at + 1, kind, &body));
        at += count;
    }
    docs
}

fn marker_of(line: &str) -> Option<&'static str> {
    let is_doc = |marker: &&str| line.starts_with(*marker) && !line.starts_with("////");
    ["///", "//!"].into_iter().find(is_doc)
}

/// Reads the text of a doc comment whose first line has this number.
fn read(line: usize, kind: Kind, body: &[&str]) -> Doc {
    let mut examples: Vec<Example> = Vec::new();
    let (mut in_code, mut words) = (false, 0);
    let mut paragraph = String::new();
    let mut is_first = true;
    for (offset, text) in body.iter().enumerate() {
        if let Some(info) = text.trim_start().strip_prefix("```") {
            in_code = !in_code;
            is_first &= paragraph.is_empty();
            if in_code {
                examples.push(example(line + offset, info));
            }
        } else if in_code {
            if let Some(example) = examples.last_mut() {
                example.asserts |= text.contains("assert");
            }
        } else if text.is_empty() {
            is_first &= paragraph.is_empty();
        } else if !text.starts_with('#') {
            words += text.split_whitespace().count();
            if is_first {
                paragraph.push_str(text);
                paragraph.push(' ');
            }
        }
    }
    Doc {
        line,
        kind,
        first_sentence: first_sentence(paragraph.trim()).into(),
        words,
        examples,
    }
}

fn example(line: usize, info: &str) -> Example {
    let mut flags = info.split([',', ' ']).filter(|flag| !flag.is_empty());
    let known = ["rust", "should_panic", "no_run", "ignore", "compile_fail"];
    let is_rust = flags
        .clone()
        .all(|flag| known.contains(&flag) || flag.starts_with("edition"));
    let is_idle = flags.any(|flag| ["no_run", "ignore", "compile_fail"].contains(&flag));
    Example {
        line,
        is_rust: is_rust && !info.contains("compile_fail"),
        runs: is_rust && !is_idle,
        // A block that must panic says so, which is its assertion.
        asserts: info.contains("should_panic"),
    }
}

/// Cuts after the first full stop, question mark or exclamation mark that ends a word.
fn first_sentence(text: &str) -> &str {
    let is_end = |(at, c): &(usize, char)| {
        let abbreviated = ["e.g", "i.e", "etc"]
            .iter()
            .any(|a| text[..*at].ends_with(a));
        matches!(c, '.' | '?' | '!')
            && !abbreviated
            && text[at + 1..]
                .chars()
                .next()
                .is_none_or(char::is_whitespace)
    };
    match text.char_indices().find(is_end) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

/// Tells from the lines after a doc comment which kind of item it belongs to.
fn kind_of(lines: &[&str]) -> Kind {
    let mut depth = 0;
    for line in lines {
        let is_attribute = depth > 0 || line.starts_with("#[");
        if is_attribute {
            let opened = line.matches(['[', '(']).count();
            let closed = line.matches([']', ')']).count();
            depth = (depth + opened).saturating_sub(closed);
            continue;
        }
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        return kind_of_code(line);
    }
    Kind::Item
}

fn kind_of_code(line: &str) -> Kind {
    const ITEMS: [&str; 14] = [
        "fn",
        "struct",
        "enum",
        "union",
        "trait",
        "const",
        "static",
        "type",
        "mod",
        "macro_rules!",
        "impl",
        "async",
        "unsafe",
        "use",
    ];
    let code = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or(rest, |(_, rest)| rest),
        Some(rest) if rest.starts_with(' ') => rest,
        _ => line,
    };
    let code = code.trim_start();
    let word = code.split_whitespace().next().unwrap_or_default();
    let name = code
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .unwrap_or_default();
    if ITEMS.contains(&word) {
        Kind::Item
    } else if code[name.len()..].starts_with(':') && !code[name.len()..].starts_with("::") {
        Kind::Field
    } else if name.starts_with(char::is_uppercase) {
        Kind::Variant
    } else {
        Kind::Item
    }
}
