//! The position at which a check or repair continues, as text that can be stored.
use super::Watermarks;
use crate::{
    hex::{from_hex, to_hex},
    ports::ScanCursor,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The position between two pages of a check or repair. It is displayed and parsed as one line of
/// text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreCursor(pub(super) Place);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Watermarks {
        shard: u32,
        after: Option<String>,
    },
    Streams {
        aggregate: usize,
        after: Option<ScanCursor>,
    },
}
impl Place {
    pub(super) const START: Self = Self::Watermarks {
        shard: 0,
        after: None,
    };
}

/// The error returned for a text that is not a [`RestoreCursor`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no cursor of a restore check")]
pub struct InvalidRestoreCursor {
    text: String,
}

/// The text form of a cursor, which is JSON.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    watermarks: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aggregate: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

impl fmt::Display for RestoreCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stored = match &self.0 {
            Place::Watermarks { shard, after } => Stored {
                watermarks: Some(*shard),
                aggregate: None,
                after: after.clone(),
            },
            Place::Streams { aggregate, after } => Stored {
                watermarks: None,
                aggregate: Some(*aggregate),
                after: after.as_ref().map(|cursor| to_hex(cursor.as_bytes())),
            },
        };
        f.write_str(&serde_json::to_string(&stored).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for RestoreCursor {
    type Err = InvalidRestoreCursor;

    fn from_str(text: &str) -> Result<Self, InvalidRestoreCursor> {
        let parse = || {
            let stored: Stored = serde_json::from_str(text).ok()?;
            Some(match (stored.watermarks, stored.aggregate) {
                (Some(shard), None) if shard < Watermarks::SHARDS => Place::Watermarks {
                    shard,
                    after: stored.after,
                },
                (None, Some(aggregate)) => Place::Streams {
                    aggregate,
                    after: match stored.after {
                        Some(hex) => Some(ScanCursor::from_bytes(from_hex(&hex)?)),
                        None => None,
                    },
                },
                _ => return None,
            })
        };
        parse().map(Self).ok_or_else(|| InvalidRestoreCursor {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_from_its_text() {
        for place in [
            Place::START,
            Place::Watermarks {
                shard: 63,
                after: Some("cart#ä \"1\"".into()),
            },
            Place::Streams {
                aggregate: 2,
                after: None,
            },
            Place::Streams {
                aggregate: 0,
                after: Some(ScanCursor::from_bytes(vec![0, 0xFF, b'{'])),
            },
        ] {
            let cursor = RestoreCursor(place);
            let text = cursor.to_string();
            assert!(!text.contains('\n'));
            assert_eq!(text.parse::<RestoreCursor>().unwrap(), cursor);
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in [
            "",
            "{}",
            "7",
            r#"{"watermarks":64}"#,
            r#"{"watermarks":1,"aggregate":1}"#,
            r#"{"aggregate":1,"after":"0"}"#,
            r#"{"aggregate":1,"after":"0g"}"#,
        ] {
            assert!(text.parse::<RestoreCursor>().is_err(), "{text}");
        }
    }
}
