//! Pages of lists that go over several processors and partitions.
use crate::ports::PartitionId;
use std::{fmt, str::FromStr};

/// The position at which a list continues. It continues only the list that returned it. A cursor
/// may be stored as text, and used by another process.
///
/// # Example
/// ```
/// use foldstream::operate::ListCursor;
/// assert!("somewhere".parse::<ListCursor>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListCursor(pub(super) Place);

/// A page of a list, and the start of the next page.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ListPage<T> {
    /// The items of the page. The page may be empty before the end of the list.
    pub items: Vec<T>,
    /// The start of the next page; `None` on the last page.
    pub next: Option<ListCursor>,
}

/// A place in a list: a partition of a generation of a processor, and a sort key in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    #[serde(rename = "p")]
    pub(super) processor: String,
    #[serde(rename = "g")]
    pub(super) generation: u32,
    #[serde(rename = "t")]
    pub(super) topic: String,
    #[serde(rename = "n")]
    pub(super) partition: u32,
    /// The sort key after which the list continues; `None`: at the beginning of the partition.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<String>,
}

impl Place {
    pub(super) fn partition(&self) -> PartitionId {
        PartitionId::new(&*self.topic, self.partition)
    }
}

/// The error returned for a text that is not a cursor of a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a cursor of a list: begin the list again without one")]
#[non_exhaustive]
pub struct InvalidListCursor;

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(&self.0).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}
impl FromStr for ListCursor {
    type Err = InvalidListCursor;
    fn from_str(text: &str) -> Result<Self, InvalidListCursor> {
        let place = serde_json::from_str(text);
        place.map(Self).map_err(|_| InvalidListCursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_from_its_text() {
        for after in [None, Some("cart#a\u{1f}7".to_owned())] {
            let cursor = ListCursor(Place {
                processor: "billing".into(),
                generation: 1,
                topic: "orders".into(),
                partition: 3,
                after,
            });
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }
}
