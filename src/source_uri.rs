//! The CloudEvents `source` attribute: a URI-reference that is parsed before the first record is
//! made.
use std::{
    fmt::{self, Display},
    net::Ipv6Addr,
    str::FromStr,
    sync::Arc,
};

/// The CloudEvents `source` of records: a URI-reference of RFC 3986 that is not empty.
///
/// Source and event id together identify an event worldwide. The source is written into every
/// record and can never be corrected there, and readers in other languages refuse records whose
/// source is not a URI-reference. Therefore it is parsed here, and not where the first record is
/// made.
///
/// # Example
/// ```
/// use foldstream::SourceUri;
/// let source: SourceUri = "urn:shop:orders".parse()?;
/// assert_eq!(source.as_str(), "urn:shop:orders");
/// assert!("/shop/orders".parse::<SourceUri>().is_ok());
/// assert!("my shop".parse::<SourceUri>().is_err());
/// # Ok::<(), foldstream::InvalidSourceUri>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceUri(Arc<str>);

/// The error returned for a text that is not a [`SourceUri`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSourceUri {
    /// The text is empty. An empty text is a URI-reference, but CloudEvents forbids it.
    #[error("the source of events is empty: name the service, as in urn:shop:orders")]
    Empty,
    /// A character is not allowed where it stands.
    #[error(
        "{uri:?} is not a URI-reference: {found:?} is not allowed at byte {at}; percent-encode it, or use a form as urn:shop:orders"
    )]
    Character {
        /// The text that was given.
        uri: String,
        /// The character that is not allowed.
        found: char,
        /// The position of the character in the text, in bytes from 0.
        at: usize,
    },
    /// A `%` is not followed by two hexadecimal digits.
    #[error(
        "{uri:?} is not a URI-reference: the % at byte {at} is not followed by two hexadecimal digits; write a plain % as %25"
    )]
    PercentEncoding {
        /// The text that was given.
        uri: String,
        /// The position of the `%` in the text, in bytes from 0.
        at: usize,
    },
    /// The text before the first `:` is not a scheme, and a relative reference must not have a `:`
    /// in its first segment.
    #[error(
        "{uri:?} is not a URI-reference: {found:?} before the first colon is not a scheme (a letter, then letters, digits, + - .)"
    )]
    Scheme {
        /// The text that was given.
        uri: String,
        /// The text before the first colon.
        found: String,
    },
    /// The part between `//` and the next `/` does not name a host, or its port is not a number.
    #[error("{uri:?} is not a URI-reference: {found:?} is not a host, or a host and a port")]
    Authority {
        /// The text that was given.
        uri: String,
        /// The part of the text, without user information.
        found: String,
    },
}

impl SourceUri {
    /// Parses the source of records.
    ///
    /// # Errors
    /// [`InvalidSourceUri`] if the text is empty or not a URI-reference.
    pub fn new(uri: impl Into<Arc<str>>) -> Result<Self, InvalidSourceUri> {
        let uri = uri.into();
        check(&uri)?;
        Ok(Self(uri))
    }
    /// Returns the text of the source.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl Default for SourceUri {
    /// Returns the source `urn:foldstream`.
    fn default() -> Self {
        Self("urn:foldstream".into())
    }
}
impl Display for SourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for SourceUri {
    type Err = InvalidSourceUri;
    fn from_str(uri: &str) -> Result<Self, InvalidSourceUri> {
        Self::new(uri)
    }
}
impl TryFrom<&str> for SourceUri {
    type Error = InvalidSourceUri;
    fn try_from(uri: &str) -> Result<Self, InvalidSourceUri> {
        Self::new(uri)
    }
}
impl TryFrom<String> for SourceUri {
    type Error = InvalidSourceUri;
    fn try_from(uri: String) -> Result<Self, InvalidSourceUri> {
        Self::new(uri)
    }
}

const fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}
const fn is_sub_delim(b: u8) -> bool {
    matches!(
        b,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
    )
}

/// Checks a text against `URI-reference` of RFC 3986, appendix A, without the empty one.
fn check(uri: &str) -> Result<(), InvalidSourceUri> {
    if uri.is_empty() {
        return Err(InvalidSourceUri::Empty);
    }
    let fragment_at = uri.find('#').unwrap_or(uri.len());
    let query_at = uri[..fragment_at].find('?').unwrap_or(fragment_at);
    let is_path = |b| is_unreserved(b) || is_sub_delim(b) || matches!(b, b':' | b'@' | b'/');
    let is_query = |b| is_path(b) || b == b'?';
    // Characters first: the checks below may then look at bytes.
    check_chars(uri, 0..query_at, |b| is_path(b) || matches!(b, b'[' | b']'))?;
    check_chars(uri, (query_at + 1).min(fragment_at)..fragment_at, is_query)?;
    check_chars(uri, (fragment_at + 1).min(uri.len())..uri.len(), is_query)?;

    let mut rest_at = 0;
    if let Some(colon) = uri[..query_at].find(':') {
        let before = &uri[..colon];
        if is_scheme(before) {
            rest_at = colon + 1;
        } else if !before.contains('/') {
            return Err(InvalidSourceUri::Scheme {
                uri: uri.into(),
                found: before.into(),
            });
        }
    }
    let mut path_at = rest_at;
    if uri[rest_at..query_at].starts_with("//") {
        let authority_at = rest_at + 2;
        let authority = &uri[authority_at..query_at];
        path_at = authority_at + authority.find('/').unwrap_or(authority.len());
        check_authority(uri, &uri[authority_at..path_at])?;
    }
    check_chars(uri, path_at..query_at, is_path)
}

fn check_chars(
    uri: &str,
    range: std::ops::Range<usize>,
    is_allowed: impl Fn(u8) -> bool,
) -> Result<(), InvalidSourceUri> {
    let part = &uri[range.clone()];
    for (at, found) in part.char_indices() {
        let at = range.start + at;
        let is_ascii_allowed = |b: u8| is_allowed(b) && found.is_ascii();
        if found == '%' {
            let digits = uri.as_bytes()[..range.end].get(at + 1..at + 3);
            if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                return Err(InvalidSourceUri::PercentEncoding {
                    uri: uri.into(),
                    at,
                });
            }
        } else if !u8::try_from(found).is_ok_and(is_ascii_allowed) {
            return Err(InvalidSourceUri::Character {
                uri: uri.into(),
                found,
                at,
            });
        }
    }
    Ok(())
}

fn is_scheme(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// Checks `authority = [ userinfo "@" ] host [ ":" port ]`, whose characters and percent-encodings
/// are checked already.
fn check_authority(uri: &str, authority: &str) -> Result<(), InvalidSourceUri> {
    let (user_info, host_and_port) = authority.rsplit_once('@').unwrap_or(("", authority));
    let is_reg_name = |b: u8| is_unreserved(b) || is_sub_delim(b) || b == b'%';
    let is_user_info = user_info.bytes().all(|b| is_reg_name(b) || b == b':');
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let is_host = if let Some(literal) = host_and_port.strip_prefix('[') {
        literal.split_once(']').is_some_and(|(address, rest)| {
            is_ip_literal(address)
                && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
        })
    } else {
        let (host, port) = host_and_port.split_once(':').unwrap_or((host_and_port, ""));
        host.bytes().all(is_reg_name) && is_port(port)
    };
    if is_user_info && is_host {
        return Ok(());
    }
    Err(InvalidSourceUri::Authority {
        uri: uri.into(),
        found: host_and_port.into(),
    })
}

/// Returns true for `IPv6address / IPvFuture` of RFC 3986.
fn is_ip_literal(text: &str) -> bool {
    if let Some(future) = text.strip_prefix(['v', 'V']) {
        let is_address = |b: u8| is_unreserved(b) || is_sub_delim(b) || b == b':';
        return future.split_once('.').is_some_and(|(version, address)| {
            !version.is_empty()
                && version.bytes().all(|b| b.is_ascii_hexdigit())
                && !address.is_empty()
                && address.bytes().all(is_address)
        });
    }
    text.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3986 (1.1.2, 3.2.2, 5.4), of CloudEvents 1.0, and corner cases of the
    /// grammar.
    #[test]
    fn uri_references_are_taken() {
        for uri in [
            "ftp://ftp.is.co.za/rfc/rfc1808.txt",
            "http://www.ietf.org/rfc/rfc2396.txt",
            "ldap://[2001:db8::7]/c=GB?objectClass?one",
            "mailto:John.Doe@example.com",
            "news:comp.infosystems.www.servers.unix",
            "tel:+1-816-555-1212",
            "telnet://192.0.2.16:80/",
            "urn:oasis:names:specification:docbook:dtd:xml:4.1.2",
            "https://github.com/cloudevents",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "/cloudevents/spec/pull/123",
            "/sensors/tn-1234567/alerts",
            "1-555-123-4567",
            "g:h",
            "g",
            "./g",
            "g/",
            "/g",
            "//g",
            "?y",
            "g?y",
            "#s",
            "g#s",
            "g?y#s",
            ";x",
            "g;x?y#s",
            ".",
            "..",
            "../../g",
            "http://a/b/c/d;p?q",
            "//[v7.a:b]:80/x",
            "//user:pass@host:/x",
            "//host:",
            "///path",
            "file:///etc/hosts",
            "//1.2.3.4",
            "//999.999.999.999",
            "//[::ffff:1.2.3.4]",
            "a:",
            "a:?q",
            "./a:b",
            "a/b:c",
            "%41%5a",
            "//%41/x",
            "a+b-c.1:x",
            "x?a/b?c",
            "x#a/b?c",
            "-",
        ] {
            assert_eq!(
                SourceUri::new(uri).map(|s| s.to_string()),
                Ok(uri.into()),
                "{uri}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused_and_the_error_says_where() {
        let character = |uri: &str, found, at| InvalidSourceUri::Character {
            uri: uri.into(),
            found,
            at,
        };
        let percent = |uri: &str, at| InvalidSourceUri::PercentEncoding {
            uri: uri.into(),
            at,
        };
        for (uri, error) in [
            ("", InvalidSourceUri::Empty),
            ("my shop", character("my shop", ' ', 2)),
            ("%zz", percent("%zz", 0)),
            ("%", percent("%", 0)),
            ("a%4", percent("a%4", 1)),
            ("a%4?1", percent("a%4?1", 1)),
            ("a?%4#1", percent("a?%4#1", 2)),
            ("a#%g1", percent("a#%g1", 2)),
            ("%é0", percent("%é0", 0)),
            (" a", character(" a", ' ', 0)),
            ("a\n", character("a\n", '\n', 1)),
            ("a\u{0}", character("a\u{0}", '\u{0}', 1)),
            ("käse", character("käse", 'ä', 1)),
            ("a?ä", character("a?ä", 'ä', 2)),
            ("a#b#c", character("a#b#c", '#', 3)),
            ("a^b", character("a^b", '^', 1)),
            ("a<b>", character("a<b>", '<', 1)),
            ("a\\b", character("a\\b", '\\', 1)),
            ("a\"b", character("a\"b", '"', 1)),
            ("a{b}", character("a{b}", '{', 1)),
            ("a|b", character("a|b", '|', 1)),
            ("a`b", character("a`b", '`', 1)),
            ("a[b]", character("a[b]", '[', 1)),
            ("a?[b]", character("a?[b]", '[', 2)),
            ("//h/[b]", character("//h/[b]", '[', 4)),
        ] {
            assert_eq!(SourceUri::new(uri), Err(error), "{uri:?}");
        }
    }

    #[test]
    fn a_colon_in_the_first_segment_needs_a_scheme_before_it() {
        for (uri, found) in [
            (":a", ""),
            ("1a:b", "1a"),
            ("a_b:c", "a_b"),
            ("%41:b", "%41"),
        ] {
            let error = InvalidSourceUri::Scheme {
                uri: uri.into(),
                found: found.into(),
            };
            assert_eq!(SourceUri::new(uri), Err(error));
        }
    }

    #[test]
    fn an_authority_is_a_host_with_an_optional_port() {
        for uri in [
            "//[::1",
            "//[::1]x",
            "//[1.2.3.4]",
            "//[v.a]",
            "//[vz.a]",
            "//[v1.]",
            "//[]",
            "//a:b",
            "//a:80:90",
            "//a]b",
            "//u[@h",
            "//u@h@i",
            "//[fe80::1%25en0]",
            "//[::1]:x",
        ] {
            let error = SourceUri::new(uri).unwrap_err();
            assert!(
                matches!(error, InvalidSourceUri::Authority { .. }),
                "{uri}: {error}"
            );
        }
    }
}
