//! The headers of a message.
use super::HeaderName;
use bytes::BytesMut;
use smallvec::SmallVec;
use std::{fmt, iter::FusedIterator, slice, sync::Arc};

/// The headers of a message, in order.
///
/// Names may repeat. A header without a value differs from one whose value is empty. The values of
/// all headers share one allocation.
///
/// # Example
/// ```
/// use foldstream::ports::{HeaderName, Headers};
///
/// let mut headers = Headers::new();
/// headers.push(HeaderName::from_static("tenant"), Some(b"a"));
/// headers.push(HeaderName::from_static("seen"), None);
/// assert_eq!(headers.get("tenant"), Some(&b"a"[..]));
/// let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
/// assert_eq!(names, ["tenant", "seen"]);
/// ```
#[derive(Clone, Default)]
pub struct Headers {
    names: Names,
    /// One for each name.
    ends: SmallVec<[End; 16]>,
    /// The values, each after the one before it.
    values: BytesMut,
}

/// The names of the headers of one message.
#[derive(Clone)]
enum Names {
    Own(Vec<HeaderName>),
    /// Those of other messages, too.
    Shared(Arc<[HeaderName]>),
}

/// The end of a value, which begins at the end of the one before it; and whether there is one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End(u32);

impl End {
    const NO_VALUE: u32 = 1 << 31;

    fn new(end: usize, has_value: bool) -> Self {
        let end = u32::try_from(end).ok().filter(|end| *end < Self::NO_VALUE);
        let Some(end) = end else {
            panic!("the values of the headers of one message have 2 GiB or more");
        };
        Self(if has_value { end } else { end | Self::NO_VALUE })
    }
    const fn get(self) -> usize {
        (self.0 & !Self::NO_VALUE) as usize
    }
    const fn has_value(self) -> bool {
        self.0 & Self::NO_VALUE == 0
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}
impl Names {
    fn as_slice(&self) -> &[HeaderName] {
        match self {
            Self::Own(names) => names,
            Self::Shared(names) => names,
        }
    }
    fn push(&mut self, name: HeaderName) {
        if let Self::Shared(names) = self {
            *self = Self::Own(names.to_vec());
        }
        if let Self::Own(names) = self {
            names.push(name);
        }
    }
}

impl Headers {
    /// Creates an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Appends a header. `None` stands for a header without a value.
    ///
    /// # Panics
    /// If the values of all headers have 2 GiB or more. No bus takes such a message.
    pub fn push(&mut self, name: HeaderName, value: Option<&[u8]>) {
        self.values.extend_from_slice(value.unwrap_or_default());
        self.ends.push(End::new(self.values.len(), value.is_some()));
        self.names.push(name);
    }
    /// Returns the number of headers.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Returns true if there are no headers.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// Returns the value of the first header of that name. `None` if there is no such header, or if
    /// it has no value.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(of, _)| of.as_str() == name)?.1
    }
    /// Returns an iterator over the headers, in order.
    pub fn iter(&self) -> HeadersIter<'_> {
        HeadersIter {
            names: self.names.as_slice().iter(),
            ends: self.ends.iter(),
            values: &self.values,
            begin: 0,
        }
    }
    /// Removes the headers for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, Option<&[u8]>) -> bool) {
        let all = self.iter().filter(|(name, value)| keep(name, *value));
        *self = all.map(|(name, value)| (name.clone(), value)).collect();
    }
}
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.names.as_slice() == other.names.as_slice()
            && self.ends == other.ends
            && self.values == other.values
    }
}
impl Eq for Headers {}
impl<V: AsRef<[u8]>> Extend<(HeaderName, Option<V>)> for Headers {
    fn extend<T: IntoIterator<Item = (HeaderName, Option<V>)>>(&mut self, headers: T) {
        for (name, value) in headers {
            self.push(name, value.as_ref().map(AsRef::as_ref));
        }
    }
}
impl<V: AsRef<[u8]>> FromIterator<(HeaderName, Option<V>)> for Headers {
    fn from_iter<T: IntoIterator<Item = (HeaderName, Option<V>)>>(headers: T) -> Self {
        let mut all = Self::new();
        all.extend(headers);
        all
    }
}
impl<'a> IntoIterator for &'a Headers {
    type Item = (&'a HeaderName, Option<&'a [u8]>);
    type IntoIter = HeadersIter<'a>;
    fn into_iter(self) -> HeadersIter<'a> {
        self.iter()
    }
}
/// As a list of names and values. Bytes that are no text are escaped.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter().map(|(name, value)| {
            let value = value.map(|value| format!("{}", value.escape_ascii()));
            (name, value)
        });
        f.debug_list().entries(shown).finish()
    }
}

/// An iterator over [`Headers`], by [`Headers::iter`].
#[derive(Clone)]
pub struct HeadersIter<'a> {
    names: slice::Iter<'a, HeaderName>,
    ends: slice::Iter<'a, End>,
    values: &'a [u8],
    /// The begin of the next value.
    begin: usize,
}
impl<'a> Iterator for HeadersIter<'a> {
    type Item = (&'a HeaderName, Option<&'a [u8]>);
    fn next(&mut self) -> Option<Self::Item> {
        let (name, end) = (self.names.next()?, self.ends.next()?);
        let value = self.values.get(self.begin..end.get());
        self.begin = end.get();
        Some((name, value.filter(|_| end.has_value())))
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.ends.size_hint()
    }
}
impl ExactSizeIterator for HeadersIter<'_> {}
impl FusedIterator for HeadersIter<'_> {}
impl fmt::Debug for HeadersIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadersIter")
            .field("left", &self.ends.len())
            .finish()
    }
}

/// The most names that are remembered, so that a sender of random names does not fill the memory.
const MOST_NAMES: usize = 256;

/// The header names that a reader has seen. Most messages have the names of the one before them.
#[derive(Clone, Debug)]
pub(crate) struct NamesSeen {
    /// The names of the last message.
    last: Arc<[HeaderName]>,
    known: foldhash::HashMap<Box<str>, HeaderName>,
}

impl NamesSeen {
    pub(crate) fn new(known: impl IntoIterator<Item = HeaderName>) -> Self {
        let known = known.into_iter().map(|name| (name.as_str().into(), name));
        Self {
            last: Arc::new([]),
            known: known.collect(),
        }
    }

    /// Gives the next messages a list of their own, whose counter is shared with no message before.
    pub(crate) fn begin_batch(&mut self) {
        self.last = Arc::from(&*self.last);
    }

    /// Copies headers, and puts their values into a buffer. A name that no header can have is left
    /// out.
    pub(crate) fn copy<'h>(
        &mut self,
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>)>,
        buffer: &mut BytesMut,
    ) -> Copied {
        let mut ends = SmallVec::new();
        // Once they differ from those of the last message.
        let mut own: Option<Vec<HeaderName>> = None;
        for (name, value) in headers {
            let last = self.last.get(ends.len());
            if own.is_some() || last.is_none_or(|last| last.as_str() != name) {
                let Some(name) = self.intern(name) else {
                    continue;
                };
                let common = self.last.get(..ends.len()).unwrap_or_default();
                own.get_or_insert_with(|| common.to_vec()).push(name);
            }
            buffer.extend_from_slice(value.unwrap_or_default());
            ends.push(End::new(buffer.len(), value.is_some()));
        }
        if let Some(own) = own {
            self.last = own.into();
        } else if ends.len() < self.last.len() {
            self.last = self.last.get(..ends.len()).unwrap_or_default().into();
        }
        Copied {
            names: Arc::clone(&self.last),
            ends,
        }
    }

    fn intern(&mut self, name: &str) -> Option<HeaderName> {
        if let Some(known) = self.known.get(name) {
            return Some(known.clone());
        }
        let new = HeaderName::new(name).ok()?;
        if self.known.len() < MOST_NAMES {
            self.known.insert(name.into(), new.clone());
        }
        Some(new)
    }
}

/// Headers without their values.
pub(crate) struct Copied {
    names: Arc<[HeaderName]>,
    ends: SmallVec<[End; 16]>,
}

impl Copied {
    /// Joins the headers with their values.
    pub(crate) fn with_values(self, values: BytesMut) -> Headers {
        Headers {
            names: Names::Shared(self.names),
            ends: self.ends,
            values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> Headers {
        let mut headers = Headers::new();
        headers.push(HeaderName::from_static("a"), Some(b"first"));
        headers.push(HeaderName::from_static("null"), None);
        headers.push(HeaderName::from_static("empty"), Some(b""));
        headers.push(HeaderName::from_static("a"), Some(b"\xff\""));
        headers
    }

    fn list(headers: &Headers) -> Vec<(&str, Option<&[u8]>)> {
        headers.iter().map(|(n, v)| (n.as_str(), v)).collect()
    }

    #[test]
    fn names_repeat_and_no_value_differs_from_an_empty_one() {
        let headers = headers();
        let expected: [(&str, Option<&[u8]>); 4] = [
            ("a", Some(b"first")),
            ("null", None),
            ("empty", Some(b"")),
            ("a", Some(b"\xff\"")),
        ];
        assert_eq!(list(&headers), expected);
        assert_eq!((headers.len(), headers.iter().len()), (4, 4));
        let get = |name| headers.get(name);
        assert_eq!(get("a"), Some(&b"first"[..]));
        assert_eq!(
            (get("null"), get("empty"), get("b")),
            (None, Some(&b""[..]), None)
        );
        let shown = format!("{headers:?}");
        assert!(
            shown.starts_with(r#"[("a", Some("first")), ("null", None)"#),
            "{shown}"
        );
    }

    #[test]
    fn equal_headers_have_the_same_names_and_values_in_the_same_order() {
        let of = |all: &[(&'static str, Option<&str>)]| -> Headers {
            let headers = all.iter().map(|(n, v)| (HeaderName::from_static(n), *v));
            headers.collect()
        };
        let one = of(&[("a", Some("12")), ("b", Some("3"))]);
        assert_eq!(one, one.clone());
        for other in [
            of(&[("a", Some("1")), ("b", Some("23"))]),
            of(&[("b", Some("3")), ("a", Some("12"))]),
            of(&[("a", Some("12"))]),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(of(&[("a", None)]), of(&[("a", Some(""))]));
    }

    #[test]
    fn what_is_not_retained_is_gone_and_more_may_follow() {
        let mut headers = headers();
        headers.retain(|name, value| name.as_str() != "null" && value != Some(b"first"));
        headers.push(HeaderName::from_static("b"), Some(b"last"));
        let expected: [(&str, Option<&[u8]>); 3] = [
            ("empty", Some(b"")),
            ("a", Some(b"\xff\"")),
            ("b", Some(b"last")),
        ];
        assert_eq!(list(&headers), expected);
    }

    #[test]
    fn copied_headers_are_those_of_the_source_whatever_the_message_before_had() {
        let mut seen = NamesSeen::new([HeaderName::from_static("known")]);
        let mut rng = fastrand::Rng::with_seed(1);
        for round in 0..2_000 {
            let names = ["known", "a", "b", "c", "not\0a name"];
            let source: Vec<_> = (0..rng.usize(0..24))
                .map(|at| {
                    let name = names[if rng.u8(0..8) > 0 {
                        at % 4
                    } else {
                        rng.usize(0..5)
                    }];
                    let value = [&b""[..], b"x", b"yz"][rng.usize(0..3)];
                    (name, rng.bool().then_some(value))
                })
                .collect();
            if round % 7 == 0 {
                seen.begin_batch();
            }
            let mut buffer = BytesMut::new();
            let copied = seen.copy(source.iter().copied(), &mut buffer);
            let mut copied = copied.with_values(buffer);
            let mut expected = source;
            expected.retain(|(name, _)| !name.contains('\0'));
            assert_eq!(list(&copied), expected);
            // A change of one message leaves those that share its names alone.
            let other = copied.clone();
            copied.push(HeaderName::from_static("more"), Some(b"1"));
            assert_eq!((list(&other), copied.len()), (expected, other.len() + 1));
        }
    }

    #[test]
    fn random_names_do_not_fill_the_memory() {
        let mut seen = NamesSeen::new([]);
        for n in 0..10_000 {
            let name = format!("random-{n}");
            let _ = seen.copy([(&*name, None)], &mut BytesMut::new());
        }
        assert_eq!(seen.known.len(), MOST_NAMES);
    }
}
