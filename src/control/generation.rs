//! The generations of a processor, and which of them is live.
use super::{PutIf, ReplayMode, Rows, RunId, RunRow, Stored, rows::Races};
use crate::ports::{ControlStore, ControlStoreError, Expect, Revision, RowKey};
use serde_json::{Map, Value};
use std::{borrow::Cow, sync::Arc};

/// The state of a processor's generations.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct State(Cow<'static, str>);

impl State {
    /// The state in which no replay works on the processor.
    pub(crate) const LIVE: Self = Self(Cow::Borrowed("live"));
    /// A replay has begun. The model of the next generation is not filled yet.
    pub(crate) const PREPARING: Self = Self(Cow::Borrowed("preparing"));
    /// A replay in place waits until no instance handles an event.
    pub(crate) const DRAINING: Self = Self(Cow::Borrowed("draining"));
    /// A replay in place scans the event store.
    pub(crate) const SCANNING: Self = Self(Cow::Borrowed("scanning"));
    /// A replay in place has emptied the model.
    pub(crate) const RESET_DONE: Self = Self(Cow::Borrowed("reset_done"));
    /// The scan has ended. The next generation consumes what came since the replay began.
    pub(crate) const CATCH_UP: Self = Self(Cow::Borrowed("catch_up"));

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The value of the row `proc`, `<name>`.
///
/// The row names a run from the start of a replay to the switch. It gets the number of the next
/// generation only with [`State::CATCH_UP`]. Until then the [row of the
/// run](super::replay::RunRow) decides which generation is being built.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Generations {
    /// The number of the generation that serves, from 1.
    #[serde(rename = "a")]
    pub(crate) active: u32,
    /// The number of the generation that catches up; `None` if there is none.
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
    /// The highest generation number that was ever allocated; 0 if no replay has begun yet. Read
    /// [`highest`](Self::highest) instead.
    #[serde(rename = "t", default, skip_serializing_if = "is_zero")]
    pub(crate) top: u32,
    /// The id of the run that works on the processor; `None` in the state `live`.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<String>,
    /// True after a replay in place was cancelled that had begun to empty the model. Nothing serves
    /// until another replay has built it.
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_empty: bool,
    /// The `Projector::MODEL` of the next generation.
    #[serde(rename = "nm", default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_model: Option<u32>,
    /// The fields that a newer build has written. This build keeps them.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(top: &u32) -> bool {
    *top == 0
}

impl Generations {
    /// Creates the row of a processor that was never replayed.
    pub(crate) fn first(model: u32) -> Self {
        Self {
            active: 1,
            next: None,
            state: State::LIVE,
            stop: None,
            epoch: 0,
            model,
            top: 0,
            run: None,
            is_empty: false,
            next_model: None,
            rest: Map::new(),
        }
    }
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
    /// Returns the highest generation number that was ever allocated.
    pub(crate) fn highest(&self) -> u32 {
        self.top.max(self.active).max(self.next.unwrap_or(0))
    }
    /// Returns true if something may be left of a generation that a run has built and that does not
    /// serve. A number that this row has never named is that of no model yet: the next run gets it.
    pub(crate) fn has_left(&self, built: u32) -> bool {
        (1..=self.highest()).contains(&built) && built != self.active
    }
    /// Returns true if this run works on the processor.
    pub(crate) fn is_of(&self, run: RunId) -> bool {
        self.run.as_ref().is_some_and(|of| *of == run.to_string())
    }

    /// Returns the row with the next generation number allocated for a run, and that number.
    /// `None` if another run works on the processor, or if this run is past the reset.
    ///
    /// A number is never allocated twice, also not for the same run: a process that has lost the
    /// lease may still empty the model of the number that it got.
    pub(crate) fn preparing(&self, run: RunId, mode: ReplayMode) -> Option<(Self, u32)> {
        let early = [State::PREPARING, State::DRAINING, State::RESET_DONE];
        let is_mine = self.is_of(run) && early.contains(&self.state);
        let is_free = self.state == State::LIVE && self.run.is_none();
        if !is_mine && !is_free {
            return None;
        }
        let generation = self.highest().checked_add(1)?;
        let in_place = mode == ReplayMode::InPlace;
        let row = Self {
            state: match mode {
                ReplayMode::BlueGreen => State::PREPARING,
                ReplayMode::InPlace => State::DRAINING,
            },
            stop: Some(in_place || self.is_empty),
            epoch: self.epoch + 1,
            top: generation,
            run: Some(run.to_string()),
            ..self.clone()
        };
        Some((row, generation))
    }

    /// Returns the row in the state [`State::CATCH_UP`], with the generation that the run has
    /// built. `None` if this run does not work on the processor, or if the row is past that step.
    pub(crate) fn catching_up(&self, run: RunId, generation: u32, model: u32) -> Option<Self> {
        let states = [
            State::PREPARING,
            State::DRAINING,
            State::RESET_DONE,
            State::SCANNING,
        ];
        (self.is_of(run) && states.contains(&self.state)).then(|| Self {
            next: Some(generation),
            next_model: Some(model),
            state: State::CATCH_UP,
            epoch: self.epoch + 1,
            ..self.clone()
        })
    }

    /// Returns the row after the switch to the next generation. `None` if this run does not work
    /// on the processor, or if its generation does not catch up yet.
    ///
    /// The caller has checked that the next generation has consumed enough.
    pub(crate) fn switched(&self, run: RunId) -> Option<Self> {
        let (Some(active), Some(model)) = (self.next, self.next_model) else {
            return None;
        };
        (self.is_of(run) && self.state == State::CATCH_UP).then(|| Self {
            active,
            model,
            ..self.live(false)
        })
    }

    /// Returns the row without the run, so that the active generation serves as before. `None` if
    /// this run does not work on the processor. The caller has seen that the run is cancelled,
    /// done, or gone; `row` is its row.
    ///
    /// A run in place that may have emptied the model leaves nothing that could serve.
    pub(crate) fn without(&self, run: RunId, row: Option<&RunRow>) -> Option<Self> {
        let must_stop = self.stop == Some(true);
        let has_emptied = match row {
            Some(row) => row.has_emptied_in_place(),
            None => must_stop,
        };
        self.is_of(run)
            .then(|| self.live(self.is_empty || has_emptied))
    }

    /// Returns the row without any run. Nothing serves while the model is empty.
    fn live(&self, is_empty: bool) -> Self {
        Self {
            is_empty,
            next: None,
            next_model: None,
            state: State::LIVE,
            stop: is_empty.then_some(true),
            epoch: self.epoch + 1,
            top: self.highest(),
            run: None,
            ..self.clone()
        }
    }
}

/// Reads the generations of a processor. The first caller creates generation 1.
pub(crate) async fn join(
    control: Arc<dyn ControlStore>,
    ids: Arc<dyn crate::IdSource>,
    processor: &str,
    model: u32,
) -> Result<Stored<Generations>, ControlStoreError> {
    let rows = Rows::new(control, ids);
    let mut races = Races::default();
    loop {
        if let Some(row) = rows.generations(processor).await? {
            return Ok(row);
        }
        let put = rows.generations_put(processor, Generations::first(model), None);
        match put.await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => return Ok(row),
            PutIf::Conflict(None) => rows.lost(&mut races, &generations_key(processor)).await?,
        }
    }
}

pub(crate) fn generations_key(processor: &str) -> RowKey {
    RowKey::new("proc", processor)
}

impl Rows {
    /// Returns the generations of a processor; `None` before its first start.
    pub(crate) async fn generations(
        &self,
        processor: &str,
    ) -> Result<Option<Stored<Generations>>, ControlStoreError> {
        self.get(&generations_key(processor)).await
    }

    /// Writes the generations of a processor in place of the write that was `seen`.
    pub(crate) async fn generations_put(
        &self,
        processor: &str,
        row: Generations,
        seen: Option<Revision>,
    ) -> Result<PutIf<Generations>, ControlStoreError> {
        let expect = seen.map_or(Expect::Absent, Expect::Revision);
        self.put(&generations_key(processor), row, expect).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_fixed() {
        let row = Generations::first(3);
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"a":1,"st":"live","e":0,"m":3}"#);
        assert_eq!(serde_json::from_str::<Generations>(&text).unwrap(), row);
        let (row, generation) = row.preparing(RUN, ReplayMode::BlueGreen).unwrap();
        let run = "0000000000000000000000000000000a";
        let text = serde_json::to_string(&row).unwrap();
        let expected =
            format!(r#"{{"a":1,"st":"preparing","s":false,"e":1,"m":3,"t":2,"r":"{run}"}}"#);
        assert_eq!(text, expected);
        let row = row.catching_up(RUN, generation, 4).unwrap();
        let text = serde_json::to_string(&row).unwrap();
        let expected = format!(
            r#"{{"a":1,"n":2,"st":"catch_up","s":false,"e":2,"m":3,"t":2,"r":"{run}","nm":4}}"#
        );
        assert_eq!(text, expected);
        let row = row.switched(RUN).unwrap();
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"a":2,"st":"live","e":3,"m":4,"t":2}"#);
        let newer = r#"{"a":2,"st":"live","e":3,"m":4,"t":2,"zz":[1]}"#;
        let read = serde_json::from_str::<Generations>(newer).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), newer);
    }

    const RUN: RunId = RunId::from_u128(10);
    const OTHER: RunId = RunId::from_u128(11);

    #[test]
    fn a_generation_number_is_never_allocated_twice() {
        let row = Generations::first(1);
        let (row, first) = row.preparing(RUN, ReplayMode::BlueGreen).unwrap();
        // Another process takes the run over before the reset, or the reset has failed.
        let (row, second) = row.preparing(RUN, ReplayMode::BlueGreen).unwrap();
        // The run is cancelled, and another one begins.
        let row = row.without(RUN, None).unwrap();
        let (row, third) = row.preparing(OTHER, ReplayMode::BlueGreen).unwrap();
        let row = row.catching_up(OTHER, third, 1).unwrap();
        let row = row.switched(OTHER).unwrap();
        let (_, fourth) = row.preparing(RUN, ReplayMode::BlueGreen).unwrap();
        assert_eq!([first, second, third, fourth], [2, 3, 4, 5]);
        assert_eq!(row.active, 4);
    }

    #[test]
    fn only_one_run_works_on_a_processor_and_only_its_own_steps_apply() {
        let live = Generations::first(1);
        assert_eq!(live.catching_up(RUN, 2, 1), None);
        assert_eq!(live.switched(RUN), None);
        assert_eq!(live.without(RUN, None), None);
        let (preparing, generation) = live.preparing(RUN, ReplayMode::BlueGreen).unwrap();
        assert_eq!(preparing.preparing(OTHER, ReplayMode::BlueGreen), None);
        assert_eq!(preparing.catching_up(OTHER, generation, 1), None);
        assert_eq!(preparing.without(OTHER, None), None);
        assert_eq!(preparing.switched(RUN), None, "nothing was built yet");
        assert_eq!((preparing.next, preparing.may_start()), (None, true));
        let catching_up = preparing.catching_up(RUN, generation, 1).unwrap();
        assert_eq!(catching_up.switched(OTHER), None);
        assert_eq!(catching_up.preparing(RUN, ReplayMode::BlueGreen), None);
        assert_eq!(catching_up.catching_up(RUN, generation, 1), None);
        assert!(catching_up.may_start());
        let cancelled = catching_up.without(RUN, None).unwrap();
        assert_eq!((cancelled.active, cancelled.next), (1, None));
        assert_eq!(cancelled.highest(), 2, "the number is used up");
        assert!(cancelled.may_start());
    }

    #[test]
    fn a_run_does_not_begin_in_a_state_of_a_newer_build() {
        let row = r#"{"a":1,"st":"dreaming","e":0,"m":3}"#;
        let row = serde_json::from_str::<Generations>(row).unwrap();
        assert_eq!(row.preparing(RUN, ReplayMode::BlueGreen), None);
    }

    #[test]
    fn in_place_the_active_generation_must_stop_until_the_switch() {
        let live = Generations::first(1);
        let (draining, generation) = live.preparing(RUN, ReplayMode::InPlace).unwrap();
        assert_eq!(draining.state, State::DRAINING);
        assert!(!draining.may_start());
        let catching_up = draining.catching_up(RUN, generation, 1).unwrap();
        assert!(!catching_up.may_start());
        assert!(catching_up.switched(RUN).unwrap().may_start());
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
