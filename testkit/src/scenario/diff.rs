//! The differences between expected (-) and actual (+) values, without the equal parts.
use foldstream::DomainEvent;
use std::fmt::{Debug, Write as _};

/// The number of comparisons above which two lists are taken for wholly different, since nobody
/// reads such a diff to its end.
const MAX_COMPARISONS: usize = 4_000_000;

/// The number of equal lines shown around a difference between values, so that a reader sees which
/// row it is in.
const CONTEXT: usize = 2;

/// One step from the expected list to the actual one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edit {
    /// An element in both lists, at these indices.
    Equal(usize, usize),
    /// An element in the expected list only.
    Missing(usize),
    /// An element in the actual list only.
    Surplus(usize),
}

/// Returns the shortest way from one list to the other, by their longest common subsequence.
fn edits<T>(expected: &[T], actual: &[T], is_equal: impl Fn(&T, &T) -> bool) -> Vec<Edit> {
    let both = expected.len().min(actual.len());
    let start = (0..both)
        .take_while(|&i| is_equal(&expected[i], &actual[i]))
        .count();
    let end = (1..=both - start)
        .take_while(|&i| is_equal(&expected[expected.len() - i], &actual[actual.len() - i]))
        .count();
    let (rows, columns) = (expected.len() - start - end, actual.len() - start - end);
    let mut edits: Vec<_> = (0..start).map(|i| Edit::Equal(i, i)).collect();
    if rows.saturating_mul(columns) > MAX_COMPARISONS {
        edits.extend((start..start + rows).map(Edit::Missing));
        edits.extend((start..start + columns).map(Edit::Surplus));
    } else {
        let same = |i: usize, j: usize| is_equal(&expected[start + i], &actual[start + j]);
        let longest = common_lengths(rows, columns, same);
        let (mut i, mut j) = (0, 0);
        while i < rows || j < columns {
            if i < rows && j < columns && same(i, j) {
                edits.push(Edit::Equal(start + i, start + j));
                (i, j) = (i + 1, j + 1);
            } else if j == columns || (i < rows && longest[i + 1][j] >= longest[i][j + 1]) {
                edits.push(Edit::Missing(start + i));
                i += 1;
            } else {
                edits.push(Edit::Surplus(start + j));
                j += 1;
            }
        }
    }
    let ends = (0..end).rev();
    edits.extend(ends.map(|i| Edit::Equal(expected.len() - 1 - i, actual.len() - 1 - i)));
    edits
}

/// Returns the length of the longest common subsequence of the tails that begin at each pair of
/// indices.
fn common_lengths(
    rows: usize,
    columns: usize,
    same: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<u32>> {
    let mut longest = vec![vec![0; columns + 1]; rows + 1];
    for i in (0..rows).rev() {
        for j in (0..columns).rev() {
            longest[i][j] = if same(i, j) {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    longest
}

/// One line of a diff: its sign, and its text.
type Line<'a> = (char, &'a str);

/// Returns the differing lines of two texts, the lines that they are nested in, and `context` equal
/// lines around them.
fn lines<'a>(expected: &'a str, actual: &'a str, context: usize) -> Vec<Line<'a>> {
    let (expected, actual): (Vec<_>, Vec<_>) =
        (expected.lines().collect(), actual.lines().collect());
    let all = signed(
        &edits(&expected, &actual, |a, b| a == b),
        &expected,
        &actual,
    );
    let indent = |text: &str| text.len() - text.trim_start().len();
    let mut is_shown = vec![false; all.len()];
    for changed in (0..all.len()).filter(|&at| all[at].0 != ' ') {
        let (from, to) = (changed.saturating_sub(context), changed + context);
        for shown in &mut is_shown[from..=to.min(all.len() - 1)] {
            *shown = true;
        }
        // The enclosing lines: the nearest less indented lines before and after the difference.
        let before: &mut dyn Iterator<Item = usize> = &mut (0..changed).rev();
        let after: &mut dyn Iterator<Item = usize> = &mut (changed + 1..all.len());
        for side in [before, after] {
            let mut nested_in = indent(all[changed].1);
            for at in side {
                if indent(all[at].1) < nested_in {
                    nested_in = indent(all[at].1);
                    is_shown[at] = true;
                }
            }
        }
    }
    let mut shown = Vec::new();
    for (at, line) in all.into_iter().enumerate() {
        if is_shown[at] {
            shown.push(line);
        } else if context > 0 && shown.last().is_none_or(|last| *last != (' ', "...")) {
            shown.push((' ', "..."));
        }
    }
    shown
}

/// Returns the edits as lines. The two lines of a field with another value stand together.
fn signed<'a>(edits: &[Edit], expected: &[&'a str], actual: &[&'a str]) -> Vec<Line<'a>> {
    let mut all = Vec::new();
    let mut rest = edits;
    while let Some(first) = rest.first() {
        if let Edit::Equal(at, _) = first {
            all.push((' ', expected[*at]));
            rest = &rest[1..];
            continue;
        }
        let (missing, surplus, len) = hunk(rest);
        rest = &rest[len..];
        let missing = missing.into_iter().map(|at| ('-', expected[at]));
        let surplus = surplus.into_iter().map(|at| ('+', actual[at]));
        let field = |line: &Line<'_>| line.1.split_once(": ").map(|(name, _)| name.to_owned());
        let (missing, surplus): (Vec<_>, Vec<_>) = (missing.collect(), surplus.collect());
        let mut pairs = missing.iter().zip(&surplus);
        let is_fieldwise = missing.len() == surplus.len()
            && pairs.all(|(a, b)| field(a).is_some() && field(a) == field(b));
        if is_fieldwise {
            all.extend(missing.into_iter().zip(surplus).flat_map(|(a, b)| [a, b]));
        } else {
            all.extend(missing.into_iter().chain(surplus));
        }
    }
    all
}

/// Returns the missing and the surplus elements up to the next equal one, and the number of edits
/// that takes.
fn hunk(edits: &[Edit]) -> (Vec<usize>, Vec<usize>, usize) {
    let (mut missing, mut surplus) = (Vec::new(), Vec::new());
    for edit in edits {
        match edit {
            Edit::Equal(..) => break,
            Edit::Missing(at) => missing.push(*at),
            Edit::Surplus(at) => surplus.push(*at),
        }
    }
    let len = missing.len() + surplus.len();
    (missing, surplus, len)
}

/// Returns the differences between two values, by their pretty `Debug` output.
pub(super) fn of_values<T: Debug + ?Sized>(expected: &T, actual: &T) -> String {
    let mut text = String::from("expected (-) and actual (+):\n");
    let (expected, actual) = (format!("{expected:#?}"), format!("{actual:#?}"));
    if expected == actual {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "    {expected}\n    (shown alike, but not equal)");
    }
    for (sign, line) in lines(&expected, &actual, CONTEXT) {
        let _ = writeln!(text, "  {sign} {line}");
    }
    text
}

/// Returns the differences between two lists of events: whole events, or fields of events of one
/// kind. `first` is the version of the first event.
pub(super) fn of_events<E: DomainEvent>(expected: &[E], actual: &[E], first: u64) -> String {
    let mut text = String::from("expected (-) and actual (+):\n");
    let all = edits(expected, actual, |a, b| a == b);
    let mut rest = &all[..];
    while let Some(edit) = rest.first() {
        if let Edit::Equal(_, at) = edit {
            write_event(&mut text, first + *at as u64, ' ', &actual[*at]);
            rest = &rest[1..];
            continue;
        }
        let (missing, surplus, len) = hunk(rest);
        rest = &rest[len..];
        for at in 0..missing.len().max(surplus.len()) {
            match (missing.get(at), surplus.get(at)) {
                (Some(&e), Some(&a)) if expected[e].type_index() == actual[a].type_index() => {
                    write_fields(&mut text, first + a as u64, &expected[e], &actual[a]);
                }
                (e, a) => {
                    if let Some(&e) = e {
                        write_event(&mut text, first + e as u64, '-', &expected[e]);
                    }
                    if let Some(&a) = a {
                        write_event(&mut text, first + a as u64, '+', &actual[a]);
                    }
                }
            }
        }
    }
    text
}

fn write_event(text: &mut String, version: u64, sign: char, event: &impl Debug) {
    let _ = writeln!(text, "  {version:>3}  {sign} {}", short(event));
}

fn write_fields(text: &mut String, version: u64, expected: &impl Debug, actual: &impl Debug) {
    let (expected, actual) = (format!("{expected:#?}"), format!("{actual:#?}"));
    if expected == actual {
        let _ = writeln!(text, "  {version:>3}    {expected}");
        let _ = writeln!(text, "         (shown alike, but not equal)");
    }
    for (at, (sign, line)) in lines(&expected, &actual, 0).into_iter().enumerate() {
        let number = if at == 0 {
            version.to_string()
        } else {
            String::new()
        };
        let _ = writeln!(text, "  {number:>3}  {sign} {line}");
    }
}

/// Returns the `Debug` output on one line, cut if it is long.
pub(super) fn short(value: &impl Debug) -> String {
    const LONGEST: usize = 300;
    let mut text = format!("{value:?}");
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(expected: &[u32], actual: &[u32]) -> String {
        let edits = edits(expected, actual, |a, b| a == b);
        let text = edits.iter().map(|edit| match edit {
            Edit::Equal(at, _) => format!(" {}", expected[*at]),
            Edit::Missing(at) => format!("-{}", expected[*at]),
            Edit::Surplus(at) => format!("+{}", actual[*at]),
        });
        text.collect::<Vec<_>>().join(",")
    }

    #[test]
    fn what_is_in_both_lists_is_equal_wherever_it_stands() {
        for (expected, actual, edits) in [
            (&[][..], &[][..], ""),
            (&[1, 2], &[1, 2], " 1, 2"),
            (&[1, 2], &[], "-1,-2"),
            (&[2, 3], &[1, 2, 3], "+1, 2, 3"),
            (&[1, 2, 3], &[1, 3], " 1,-2, 3"),
            (&[1, 2, 3, 4], &[1, 3, 2, 4], " 1,-2, 3,+2, 4"),
            (&[1, 1], &[1], " 1,-1"),
            (&[5, 1, 6], &[7, 1, 8], "-5,+7, 1,-6,+8"),
        ] {
            assert_eq!(diff(expected, actual), edits, "{expected:?} {actual:?}");
        }
    }

    #[test]
    fn lists_too_long_to_compare_are_wholly_different() {
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..3000).collect(), (1..3001).collect());
        let text = diff(&a, &b);
        assert!(text.starts_with("-0,-1,-2") && text.ends_with("+2999,+3000"));
    }

    #[test]
    fn a_value_is_shown_where_it_differs_and_what_it_is_nested_in() {
        #[derive(Debug)]
        #[expect(dead_code, reason = "only shown")]
        struct Row {
            id: &'static str,
            a: u32,
            b: u32,
            c: u32,
            d: u32,
            total: u32,
        }
        let row = |id, total| Row {
            id,
            a: 1,
            b: 1,
            c: 1,
            d: 1,
            total,
        };
        let text = of_values(
            &[row("x", 1), row("y", 2), row("z", 3)],
            &[row("x", 1), row("y", 7), row("z", 3)],
        );
        let expected = "\
expected (-) and actual (+):
    [
    ...
        Row {
    ...
            c: 1,
            d: 1,
  -         total: 2,
  +         total: 7,
        },
        Row {
    ...
    ]
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let text = short(&"ä".repeat(1000));
        assert_eq!(text.chars().count(), 303);
        assert!(text.ends_with("ä..."));
    }
}
