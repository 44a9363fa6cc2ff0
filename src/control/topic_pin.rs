//! The pinned number of partitions that a topic has had since its first event.
use super::{PutIf, Rows, rows::Races};
use crate::ports::{ControlStoreError, Expect, RangeQuery, RowKey};

/// The partition of the rows. The sort key is the name of the topic.
const PARTITION: &str = "topic";

/// The value of a pin's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct TopicPin {
    #[serde(rename = "p")]
    partitions: u32,
}

/// The rows `topic/<name>` -> `{"p": partitions}`.
///
/// The partition of a key depends on the number of partitions. With one more, streams move to other
/// partitions, while older events of the same streams may still wait in their former ones.
/// Therefore the number is pinned, and a change is an operator's decision.
#[derive(Clone, Debug)]
pub(crate) struct TopicPins {
    rows: Rows,
}

impl TopicPins {
    pub(crate) const fn new(rows: Rows) -> Self {
        Self { rows }
    }

    /// Returns the pinned number: `partitions`, unless another number was pinned before.
    pub(crate) async fn pinned_or(
        &self,
        topic: &str,
        partitions: u32,
    ) -> Result<u32, ControlStoreError> {
        let key = RowKey::new(PARTITION, topic);
        let mut races = Races::default();
        loop {
            if let Some(pin) = self.rows.get::<TopicPin>(&key).await? {
                return Ok(pin.value.partitions);
            }
            let pin = TopicPin { partitions };
            match self.rows.put(&key, pin, Expect::Absent).await? {
                PutIf::Written(_) => return Ok(partitions),
                PutIf::Conflict(Some(pin)) => return Ok(pin.value.partitions),
                // Deleted between the put and its answer: read the row again.
                PutIf::Conflict(None) => self.rows.lost(&mut races, &key).await?,
            }
        }
    }

    /// Returns the pinned number of a topic; `None` if no publisher has pinned one.
    pub(crate) async fn pinned(&self, topic: &str) -> Result<Option<u32>, ControlStoreError> {
        let key = RowKey::new(PARTITION, topic);
        let pin = self.rows.get::<TopicPin>(&key).await?;
        Ok(pin.map(|pin| pin.value.partitions))
    }

    /// Pins this number, whatever was pinned before.
    pub(crate) async fn pin(&self, topic: &str, partitions: u32) -> Result<(), ControlStoreError> {
        let key = RowKey::new(PARTITION, topic);
        let pin = TopicPin { partitions };
        // Without a condition there is no conflict.
        let _ = self.rows.put(&key, pin, Expect::Any).await?;
        Ok(())
    }
}

impl Rows {
    /// Returns the topics whose number of partitions is pinned, with that number.
    pub(crate) async fn pinned_topics(&self) -> Result<Vec<(String, u32)>, ControlStoreError> {
        let (mut topics, mut after) = (Vec::new(), None);
        loop {
            let query = RangeQuery::new(PARTITION).with_after(after);
            let name_of = |sort: &str| Some(sort.to_owned());
            let page = self.page::<_, TopicPin>(&query, name_of).await?;
            let rows = page.rows.into_iter();
            topics.extend(rows.map(|(topic, pin)| (topic, pin.value.partitions)));
            after = page.next;
            if after.is_none() {
                return Ok(topics);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_pin_is_fixed() {
        let text = serde_json::to_string(&TopicPin { partitions: 12 }).unwrap();
        assert_eq!(text, r#"{"p":12}"#);
    }
}
