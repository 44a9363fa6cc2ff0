//! The names of message headers.
use crate::shared_str::SharedStr;
use std::{
    fmt::{self, Debug, Display},
    ops::Deref,
    str::FromStr,
    sync::Arc,
};

/// The name of a message header: UTF-8 text without a NUL character, compared byte for byte.
///
/// Kafka takes any UTF-8 text, the empty one included. A NUL is refused because librdkafka hands
/// names to readers as C strings, so that a name with a NUL would arrive shortened. Names are
/// case-sensitive, unlike those of HTTP.
///
/// Cloning a name allocates nothing.
///
/// # Example
/// ```
/// use foldstream::ports::HeaderName;
/// const TENANT: HeaderName = HeaderName::from_static("x-tenant");
/// let name: HeaderName = "x-tenant".parse()?;
/// assert_eq!(name, TENANT);
/// assert!("x\0tenant".parse::<HeaderName>().is_err());
/// # Ok::<(), foldstream::ports::InvalidHeaderName>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderName(SharedStr);

/// The error returned for a text that cannot be the name of a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("the header name {name:?} holds a NUL character: remove it")]
pub struct InvalidHeaderName {
    /// The text that was refused.
    pub name: String,
}

impl HeaderName {
    /// Creates a name from a text.
    ///
    /// # Errors
    /// [`InvalidHeaderName`] if the text holds a NUL character.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, InvalidHeaderName> {
        let name = name.into();
        match name.contains('\0') {
            false => Ok(Self(SharedStr::Shared(name))),
            true => Err(InvalidHeaderName {
                name: name.as_ref().into(),
            }),
        }
    }
    /// Creates a name from a text of the program.
    ///
    /// # Panics
    /// If the text holds a NUL character. In a constant that is an error at compile time.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] != 0, "the name of a header holds a NUL character");
            at += 1;
        }
        Self(SharedStr::Static(name))
    }
    /// Returns the text of the name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}
impl Deref for HeaderName {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}
impl FromStr for HeaderName {
    type Err = InvalidHeaderName;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}
impl PartialEq<str> for HeaderName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}
impl PartialEq<&str> for HeaderName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
impl Debug for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.0, f)
    }
}
impl Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_without_a_nul_is_a_name() {
        for text in ["ce_id", "", " ", "größe 🛒", "a\nb"] {
            let name = HeaderName::new(text).unwrap();
            assert_eq!((name.as_str(), &name), (text, &text.parse().unwrap()));
        }
        for text in ["\0", "a\0", "\0a", "a\0b"] {
            let error = HeaderName::new(text).unwrap_err();
            assert_eq!(error.name, text);
            assert!(error.to_string().contains("NUL"), "{error}");
        }
    }
}
