//! The cursors of injected empty pages, which lead back to the start of the same page.
//!
//! Callers may expect that every page has a new cursor, and no adapter has a cursor for the
//! beginning of a list. So the wrapper makes cursors of its own and translates them back. A cursor
//! names its list, because other lists must refuse it.
use foldstream::ports::ScanCursor;
use std::fmt::Display;

const PREFIX: &[u8] = b"\xf4\x8f\xbf\xbffaults: ";

/// A place in a list of the inner adapter, with the number of empty pages in a row that led back to
/// it.
#[derive(Debug, PartialEq)]
struct Place {
    list: String,
    rounds: u32,
    after: Option<Vec<u8>>,
}

impl Place {
    /// Encodes the place as `PREFIX <list> NUL <rounds> NUL [+ <after>]`.
    fn encode(&self) -> Vec<u8> {
        let mut out = PREFIX.to_vec();
        out.extend(format!("{}\0{}\0", self.list, self.rounds).bytes());
        if let Some(after) = &self.after {
            out.push(b'+');
            out.extend(after);
        }
        out
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(PREFIX)?;
        let mut parts = rest.splitn(3, |byte| *byte == 0);
        let mut text = || String::from_utf8(parts.next()?.to_vec()).ok();
        let (list, rounds) = (text()?, text()?.parse().ok()?);
        let after = parts.next()?.strip_prefix(b"+").map(<[u8]>::to_vec);
        Some(Self {
            list,
            rounds,
            after,
        })
    }
    fn next(list: String, asked: Option<&[u8]>) -> Self {
        match asked.and_then(Self::decode) {
            Some(place) => Self {
                rounds: place.rounds.saturating_add(1),
                ..place
            },
            None => Self {
                list,
                rounds: 1,
                after: asked.map(<[u8]>::to_vec),
            },
        }
    }
}

/// Returns the cursor of an empty page of a list of this name, from the cursor `asked` with which
/// the page was requested.
pub(super) fn again(list: &impl Display, asked: Option<&ScanCursor>) -> ScanCursor {
    let place = Place::next(list.to_string(), asked.map(ScanCursor::as_bytes));
    ScanCursor::from_bytes(place.encode())
}

/// Returns the cursor for the inner adapter. A cursor of another list is passed on unchanged, so
/// that the inner adapter refuses it.
pub(super) fn resolved(list: &impl Display, asked: Option<ScanCursor>) -> Option<ScanCursor> {
    let place = asked.as_ref().and_then(|a| Place::decode(a.as_bytes()));
    match place.filter(|place| place.list == list.to_string()) {
        Some(place) => place.after.map(ScanCursor::from_bytes),
        None => asked,
    }
}

/// Returns the sort key with which an empty page of a range of rows continues, as [`again`] does
/// for lists.
pub(super) fn again_after(asked: Option<&str>) -> String {
    let place = Place::next(String::new(), asked.map(str::as_bytes));
    // All parts are valid UTF-8, so no byte is replaced.
    String::from_utf8_lossy(&place.encode()).into_owned()
}
pub(super) fn resolved_sort(asked: Option<String>) -> Option<String> {
    let place = asked.as_ref().and_then(|a| Place::decode(a.as_bytes()));
    match place {
        Some(place) => place.after.and_then(|after| String::from_utf8(after).ok()),
        None => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Call, *};

    #[test]
    fn places_move_with_every_turn_and_lead_back_to_what_was_asked() {
        let call = Call::Streams { aggregate: "cart" };
        let other = Call::Streams { aggregate: "order" };
        for asked in [None, Some(ScanCursor::from_bytes(vec![0, 1, b'+', 255]))] {
            let first = again(&call, asked.as_ref());
            let second = again(&call, Some(&first));
            assert_ne!(first, second);
            for place in [first, second] {
                assert_eq!(resolved(&call, Some(place.clone())), asked);
                assert_eq!(resolved(&other, Some(place.clone())), Some(place));
            }
        }
        for asked in [None, Some("größe\0".to_owned())] {
            let place = again_after(asked.as_deref());
            assert_eq!(resolved_sort(Some(place)), asked);
        }
    }
}
