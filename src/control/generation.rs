//! The generations of a processor, and which of them is live.
use super::{PutIf, Rows, rows::Races};
use crate::ports::{ControlStore, ControlStoreError, Expect, RowKey};
use std::{borrow::Cow, sync::Arc};

/// The state of a processor's generations.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct State(Cow<'static, str>);

impl State {
    /// The state in which there is no next generation.
    pub(crate) const LIVE: Self = Self(Cow::Borrowed("live"));

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The value of the row `proc`, `<name>`. A replay adds `t` (the highest generation ever
/// allocated), `r` (the run) and `nm` (the next generation's model). Fields that this build does
/// not name here it neither reads nor writes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Generations {
    /// The number of the generation that serves, from 1.
    #[serde(rename = "a")]
    pub(crate) active: u32,
    /// The number of the generation that is being built; `None` if there is none.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u32>,
    #[serde(rename = "st")]
    pub(crate) state: State,
    /// True if the active generation must stop in this state. `None`: it may run in the state
    /// `live` only.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop: Option<bool>,
    /// A number that grows with every change of the row.
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    /// The `Projector::MODEL` of the active generation; 0 for a listener.
    #[serde(rename = "m")]
    pub(crate) model: u32,
}

impl Generations {
    /// Returns true if the active generation may be started. A newer build may be working on the
    /// processor in a state that this build does not know. Only the row itself tells whether the
    /// active generation may run meanwhile.
    pub(crate) fn may_start(&self) -> bool {
        !self.stop.unwrap_or(self.state != State::LIVE)
    }
    /// Returns the generations that may have rows of their own: the one that serves, and the one
    /// that is being built.
    pub(crate) fn all(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.active).chain(self.next)
    }
}

/// Reads the generations of a processor. The first caller creates generation 1.
pub(crate) async fn join(
    control: Arc<dyn ControlStore>,
    ids: Arc<dyn crate::IdSource>,
    processor: &str,
    model: u32,
) -> Result<Generations, ControlStoreError> {
    let rows = Rows::new(control, ids);
    let key = RowKey::new("proc", processor);
    let mut races = Races::default();
    loop {
        if let Some(row) = rows.get::<Generations>(&key).await? {
            return Ok(row.value);
        }
        let first = Generations {
            active: 1,
            next: None,
            state: State::LIVE,
            stop: None,
            epoch: 0,
            model,
        };
        match rows.put(&key, first, Expect::Absent).await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => return Ok(row.value),
            PutIf::Conflict(None) => rows.lost(&mut races, &key).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_fixed() {
        let row = Generations {
            active: 1,
            next: None,
            state: State::LIVE,
            stop: None,
            epoch: 0,
            model: 3,
        };
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"a":1,"st":"live","e":0,"m":3}"#);
        assert_eq!(serde_json::from_str::<Generations>(&text).unwrap(), row);
    }

    #[test]
    fn the_active_generation_starts_in_an_unknown_state_only_if_the_row_says_that_it_goes_on() {
        for (row, expected) in [
            (r#"{"a":1,"st":"live","e":0,"m":3}"#, true),
            (r#"{"a":1,"st":"live","s":false,"e":0,"m":3}"#, true),
            (r#"{"a":1,"st":"live","s":true,"e":0,"m":3}"#, false),
            (r#"{"a":1,"n":2,"st":"scanning","e":4,"m":3,"t":2}"#, false),
            (
                r#"{"a":1,"st":"draining","s":true,"e":4,"m":3,"r":"x"}"#,
                false,
            ),
            (
                r#"{"a":1,"n":2,"st":"catch_up","s":false,"e":4,"m":3,"nm":4}"#,
                true,
            ),
            (r#"{"a":1,"st":"","e":4,"m":3}"#, false),
        ] {
            let read = serde_json::from_str::<Generations>(row).unwrap();
            assert_eq!(read.may_start(), expected, "{row}");
        }
    }
}
