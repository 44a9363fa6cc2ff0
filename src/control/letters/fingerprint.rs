//! [`Fingerprint`]: equal for failures that most likely have one cause.
use super::{super::hex_id::hex_id, Failed};
use uuid::Uuid;

hex_id! {
    /// The fingerprint of a failure. Failures with one fingerprint most likely have one cause.
    ///
    /// It is computed from the class of the error, its type, its message without numbers and ids,
    /// and the type of the event. It is stored, so how it is computed never changes.
    pub Fingerprint, "a fingerprint"
}

/// The namespace of the UUIDv5 that a fingerprint is.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1c_5a0e_3d7b_5c44_9a52_1be0_77d2_40c9);
/// The part of a message that counts, in bytes.
const MAX_MESSAGE: usize = 4 * 1024;

impl Fingerprint {
    /// Returns the fingerprint of a failure.
    pub(crate) fn of(failed: &Failed<'_>) -> Self {
        let stream = failed.stream;
        let known = [stream.map(|s| s.as_str()), stream.map(|s| s.id())];
        let message = super::cut(failed.error, MAX_MESSAGE);
        let parts = [
            failed.class.as_str(),
            failed.error_type,
            &without_ids(&message, &known),
            failed.event_type.unwrap_or_default(),
        ];
        let name = parts.join("\u{1f}");
        Self(Uuid::new_v5(&NAMESPACE, name.as_bytes()).as_u128())
    }
}

/// Returns a message with `*` in place of the known ids, of all words with a digit, and of words
/// that are too long to be words.
fn without_ids(message: &str, known: &[Option<&str>]) -> String {
    let mut text = message.to_owned();
    for id in known.iter().flatten() {
        text = replace_words(&text, id);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let len = word_len(rest);
        if len == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(len);
        if is_id(word) {
            push_star(&mut out);
        } else {
            out.push_str(word);
        }
        rest = after;
    }
    out
}

/// Replaces `id` by `*` where it is not a part of a longer word.
fn replace_words(text: &str, id: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(id).filter(|_| !id.is_empty()) {
        let (before, found) = rest.split_at(at);
        let after = &found[id.len()..];
        out.push_str(before);
        let touches = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        if touches(out.chars().next_back()) || touches(after.chars().next()) {
            // One character further, so that the loop ends.
            let next = id.chars().next().map_or(0, char::len_utf8);
            out.push_str(&found[..next]);
            rest = &found[next..];
        } else {
            out.push('*');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Returns the length of the word at the beginning of a text: letters and digits, and signs of ids
/// between two of them.
fn word_len(text: &str) -> usize {
    let mut end = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c.is_alphanumeric() {
            end = at + c.len_utf8();
        } else {
            let joins =
                end == at && at > 0 && matches!(c, '-' | '_' | '.' | ':' | '#' | '/' | '@' | '+');
            let goes_on = chars.peek().is_some_and(|(_, next)| next.is_alphanumeric());
            if !(joins && goes_on) {
                break;
            }
        }
    }
    end
}

fn is_id(word: &str) -> bool {
    let is_long = |max: usize| word.len() >= max && word.bytes().all(|b| b.is_ascii_alphanumeric());
    word.chars().any(char::is_numeric)
        || is_long(32)
        || (is_long(16) && word.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Appends a star. A list of ids is one star, however long it is.
fn push_star(out: &mut String) {
    let kept = out.trim_end_matches([',', ' ', ';', '|']);
    if kept.ends_with('*') {
        out.truncate(kept.len());
    } else {
        out.push('*');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StreamId, Timestamp, control::LetterClass};

    fn of(stream: &str, error: &str) -> Fingerprint {
        let stream = StreamId::new("cart", stream).unwrap();
        Fingerprint::of(&Failed {
            class: LetterClass::Permanent,
            error_type: "shop::Declined",
            error,
            event_type: Some("cart.CheckedOut"),
            stream: Some(&stream),
            attempts: 1,
            first: Timestamp::default(),
            last: Timestamp::default(),
        })
    }

    #[test]
    fn failures_that_differ_in_numbers_and_ids_only_have_one_fingerprint() {
        for (a, b) in [
            (
                ("ann", "card of ann declined"),
                ("bob", "card of bob declined"),
            ),
            (("ann", "cart#ann: no stock"), ("7", "cart#7: no stock")),
            (("a", "cannot pay 17 EUR"), ("b", "cannot pay 1.50 EUR")),
            (
                ("a", "order 0190f3b2-7c1e-7bb1-8a55-0242ac120002 is closed"),
                ("a", "order 0190f3b2-7c1e-7bb1-8a55-0242ac120003 is closed"),
            ),
            (
                ("a", "10.0.0.1:9092 refused"),
                ("a", "10.0.0.27:9093 refused"),
            ),
            (("a", "missing items [1, 2, 3]"), ("a", "missing items [7]")),
            (
                ("a", "key deadbeefdeadbeefab"),
                ("a", "key abcdefabcdefabcdef"),
            ),
        ] {
            assert_eq!(of(a.0, a.1), of(b.0, b.1), "{a:?} {b:?}");
        }
    }

    #[test]
    fn failures_that_differ_in_anything_else_have_different_fingerprints() {
        assert_ne!(of("a", "card declined"), of("a", "card expired"));
        // An id is replaced only where it is a word of its own.
        assert_eq!(of("ann", "cannot pay"), of("bob", "cannot pay"));
        assert_ne!(of("a", "a pear"), of("a", "pear"));
        let stream = StreamId::new("cart", "1").unwrap();
        let failed = Failed {
            class: LetterClass::Permanent,
            error_type: "A",
            error: "no",
            event_type: Some("x.Y"),
            stream: Some(&stream),
            attempts: 1,
            first: Timestamp::default(),
            last: Timestamp::default(),
        };
        let others = [
            Failed {
                class: LetterClass::Poison,
                ..failed
            },
            Failed {
                error_type: "B",
                ..failed
            },
            Failed {
                event_type: Some("x.Z"),
                ..failed
            },
            Failed {
                event_type: None,
                ..failed
            },
        ];
        for other in others {
            assert_ne!(
                Fingerprint::of(&other),
                Fingerprint::of(&failed),
                "{other:?}"
            );
        }
        let later = Failed {
            attempts: 9,
            last: Timestamp::MAX,
            ..failed
        };
        assert_eq!(Fingerprint::of(&later), Fingerprint::of(&failed));
    }

    #[test]
    fn a_fingerprint_never_changes_since_it_is_stored() {
        let expected = "ceca48952fbc5e298bc29abd6e8b9db8";
        assert_eq!(of("ann", "card 7 of ann declined").to_string(), expected);
        assert_eq!(
            expected.parse::<Fingerprint>().unwrap().to_string(),
            expected
        );
        assert!("7".parse::<Fingerprint>().is_err());
    }

    #[test]
    fn a_message_keeps_its_words_and_signs() {
        let text = |message: &str| without_ids(message, &[]);
        assert_eq!(
            text("row 7: not found (key=a/b)"),
            "row *: not found (key=a/b)"
        );
        assert_eq!(text("at http://host:9092/x?y"), "at http://*?y");
        assert_eq!(text("ß7 über #1, 2"), "* über #*");
        assert_eq!(text(""), "");
    }
}
