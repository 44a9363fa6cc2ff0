//! Ids of 128 bits that are written as 32 hexadecimal digits.

/// Defines an id of 128 bits, displayed and stored as 32 hexadecimal digits.
macro_rules! hex_id {
    ($(#[$attr:meta])* $vis:vis $name:ident, $what:literal) => {
        $(#[$attr])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis struct $name(u128);

        impl $name {
            #[doc = concat!("Creates ", $what, " from its bits.")]
            #[allow(dead_code, reason = "not every id needs its bits")]
            $vis const fn from_u128(bits: u128) -> Self {
                Self(bits)
            }
            #[doc = concat!("Returns the bits of ", $what, ".")]
            #[allow(dead_code, reason = "not every id needs its bits")]
            $vis const fn as_u128(self) -> u128 {
                self.0
            }
        }
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::Display::fmt(self, f)
            }
        }
        impl ::std::str::FromStr for $name {
            type Err = $crate::control::InvalidHexId;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::control::hex_id::parse(text, $what).map(Self)
            }
        }
        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <::std::borrow::Cow<'_, str>>::deserialize(d)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_id;

/// The error returned for a text that is not an id of 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}, which has 32 hexadecimal digits: copy it from a list")]
pub struct InvalidHexId {
    text: String,
    what: &'static str,
}

pub(crate) fn parse(text: &str, what: &'static str) -> Result<u128, InvalidHexId> {
    let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let bits = is_hex
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten();
    bits.ok_or_else(|| InvalidHexId {
        text: text.chars().take(80).collect(),
        what,
    })
}
