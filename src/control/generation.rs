//! Which generation of a processor is live.
use super::{PutIf, Rows};
use crate::ports::{ControlStore, ControlStoreError, Expect, RowKey};
use std::sync::Arc;

/// What becomes of the next generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// There is none: the active one is all.
    Live,
    /// A newer build does something with the next generation, which is no concern of the active one.
    #[serde(other)]
    Other,
}

/// Value of the row `proc`, `<name>`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Generations {
    /// The generation that serves, from 1.
    #[serde(rename = "a")]
    pub(crate) active: u32,
    /// The generation that is being built, if any.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u32>,
    #[serde(rename = "st")]
    pub(crate) state: State,
    /// Grows with every change.
    #[serde(rename = "e")]
    pub(crate) epoch: u64,
    /// `Projector::MODEL` of the active generation; 0 for a listener.
    #[serde(rename = "m")]
    pub(crate) model: u32,
}

/// The live generation of a processor; the first to ask makes generation 1.
pub(crate) async fn join(
    control: Arc<dyn ControlStore>,
    ids: Arc<dyn crate::IdSource>,
    processor: &str,
    model: u32,
) -> Result<Generations, ControlStoreError> {
    let rows = Rows::new(control, ids);
    let key = RowKey::new("proc", processor);
    loop {
        if let Some(row) = rows.get::<Generations>(&key).await? {
            return Ok(row.value);
        }
        let first = Generations {
            active: 1,
            next: None,
            state: State::Live,
            epoch: 0,
            model,
        };
        match rows.put(&key, first, Expect::Absent).await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => return Ok(row.value),
            PutIf::Conflict(None) => {}
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
            state: State::Live,
            epoch: 0,
            model: 3,
        };
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"a":1,"st":"live","e":0,"m":3}"#);
        assert_eq!(serde_json::from_str::<Generations>(&text).unwrap(), row);
        let newer = r#"{"a":1,"n":2,"st":"scanning","e":4,"m":3,"x":true}"#;
        let read = serde_json::from_str::<Generations>(newer).unwrap();
        assert_eq!((read.active, read.state), (1, State::Other));
    }
}
