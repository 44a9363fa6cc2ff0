//! The generations that an instance runs, as a function of the row `proc`.
use crate::{
    control::{GenerationState, Generations},
    runner::{ProcessorState, RunnerError},
};
use std::{cmp::Ordering, fmt, sync::Arc};

/// The generations that an instance of one build runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runner) struct Plan {
    /// The generation that serves.
    pub(super) serving: Option<u32>,
    /// The generation that catches up beside it.
    pub(super) next: Option<u32>,
    /// The reason why no generation serves here.
    pub(super) idle: Option<Idle>,
}

/// The reason why no generation serves in an instance. It looks again every few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runner) enum Idle {
    /// No generation of this build's model was built yet.
    NoModel { expected: u32, found: u32 },
    /// The model of a newer build serves.
    Superseded { expected: u32, found: u32 },
    /// The live model is emptied and built again. The replay is in this state.
    InPlace(String),
    /// A replay in place has emptied the live model, and was cancelled.
    Emptied,
    /// A newer build has written a state in which the active generation may have to stop.
    Unknown(String),
}

impl Idle {
    /// Returns the reason why a build of one model does nothing while another one serves; `None` if
    /// it is the same.
    pub(in crate::runner) fn of(expected: u32, found: u32) -> Option<Self> {
        match found.cmp(&expected) {
            Ordering::Equal => None,
            Ordering::Less => Some(Self::NoModel { expected, found }),
            Ordering::Greater => Some(Self::Superseded { expected, found }),
        }
    }
    /// Returns the state of the processor in this process.
    pub(in crate::runner) const fn state(&self) -> ProcessorState {
        match self {
            Self::Superseded { .. } => ProcessorState::Superseded,
            Self::NoModel { .. } | Self::InPlace(_) | Self::Emptied | Self::Unknown(_) => {
                ProcessorState::Waiting
            }
        }
    }

    /// Returns the error of a run that is to end and has nothing to do.
    pub(super) fn into_error(self, processor: Arc<str>) -> RunnerError {
        match self {
            Self::NoModel { expected, found } | Self::Superseded { expected, found } => {
                RunnerError::WrongModel {
                    processor,
                    expected,
                    found,
                }
            }
            Self::InPlace(state) | Self::Unknown(state) => {
                RunnerError::UnknownState { processor, state }
            }
            Self::Emptied => RunnerError::EmptyModel { processor },
        }
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModel { expected, found } => write!(
                f,
                "there is no read model of number {expected}, which this build writes, and number {found} serves: start a replay"
            ),
            Self::Superseded { expected, found } => write!(
                f,
                "this build writes the read model of number {expected}, and number {found} of a newer build serves: end this build, or start a replay with it to go back"
            ),
            Self::InPlace(state) => {
                write!(
                    f,
                    "a replay builds the live read model again in place ({state})"
                )
            }
            Self::Emptied => f.write_str(
                "the live read model was emptied by a replay in place that was cancelled: start a replay",
            ),
            Self::Unknown(state) => write!(
                f,
                "the processor is in state {state:?}, which this build does not know and in which its active generation may have to stop"
            ),
        }
    }
}

/// Returns what an instance of a build runs. `running` is the generation that serves in it now.
pub(super) fn plan(row: &Generations, model: u32, running: Option<u32>) -> Plan {
    let is_known = is_known(&row.state);
    let is_mine = row.model == model;
    // An unknown state stops nothing that runs.
    let goes_on = !is_known && is_mine && running == Some(row.active);
    let may_serve = goes_on || row.may_start();
    let is_catching_up = row.state == GenerationState::CATCH_UP && row.next_model == Some(model);
    let state = || row.state.as_str().to_owned();
    let idle = if !may_serve && row.is_empty && row.run.is_none() {
        Some(Idle::Emptied)
    } else if !may_serve && is_known {
        Some(Idle::InPlace(state()))
    } else if !may_serve {
        Some(Idle::Unknown(state()))
    } else {
        Idle::of(model, row.model)
    };
    Plan {
        serving: idle.is_none().then_some(row.active),
        next: row.next.filter(|_| is_catching_up),
        idle,
    }
}

/// Returns true for the states that this build knows.
pub(super) fn is_known(state: &GenerationState) -> bool {
    [
        GenerationState::LIVE,
        GenerationState::PREPARING,
        GenerationState::DRAINING,
        GenerationState::RESET_DONE,
        GenerationState::SCANNING,
        GenerationState::CATCH_UP,
    ]
    .contains(state)
}

impl Plan {
    /// Returns true if the plan runs this generation.
    pub(super) fn runs(&self, generation: u32) -> bool {
        [self.serving, self.next].contains(&Some(generation))
    }
    /// Returns the generations that the plan runs.
    pub(super) fn wanted(&self) -> impl Iterator<Item = u32> {
        self.serving.into_iter().chain(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Generations {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_instance_runs_generations_of_its_own_model_only() {
        let live = r#"{"a":3,"st":"live","e":9,"m":2}"#;
        let preparing = r#"{"a":3,"st":"preparing","s":false,"e":9,"m":2,"t":4,"r":"x"}"#;
        let catch_up =
            r#"{"a":3,"n":4,"st":"catch_up","s":false,"e":9,"m":2,"t":4,"r":"x","nm":3}"#;
        let same = r#"{"a":3,"n":4,"st":"catch_up","s":false,"e":9,"m":2,"t":4,"r":"x","nm":2}"#;
        for (text, model, serving, next, state) in [
            (live, 2, Some(3), None, None),
            (live, 1, None, None, Some(ProcessorState::Superseded)),
            (live, 3, None, None, Some(ProcessorState::Waiting)),
            (preparing, 2, Some(3), None, None),
            (preparing, 3, None, None, Some(ProcessorState::Waiting)),
            (catch_up, 2, Some(3), None, None),
            (catch_up, 3, None, Some(4), Some(ProcessorState::Waiting)),
            (catch_up, 1, None, None, Some(ProcessorState::Superseded)),
            (same, 2, Some(3), Some(4), None),
        ] {
            let plan = plan(&row(text), model, None);
            let found = (plan.serving, plan.next, plan.idle.map(|idle| idle.state()));
            assert_eq!(found, (serving, next, state), "{text} for model {model}");
        }
        let waits = plan(&row(live), 3, None).idle.unwrap().to_string();
        assert!(waits.contains("start a replay"), "{waits}");
    }

    #[test]
    fn in_place_nothing_serves_from_draining_until_the_switch() {
        for state in ["draining", "reset_done", "scanning"] {
            let text = format!(r#"{{"a":1,"st":"{state}","s":true,"e":2,"m":1,"t":2,"r":"x"}}"#);
            let plan = plan(&row(&text), 1, Some(1));
            assert_eq!((plan.serving, plan.next), (None, None), "{state}");
            assert_eq!(plan.idle, Some(Idle::InPlace(state.into())));
        }
        let text = r#"{"a":1,"n":2,"st":"catch_up","s":true,"e":3,"m":1,"t":2,"r":"x","nm":1}"#;
        let plan = plan(&row(text), 1, Some(1));
        assert_eq!((plan.serving, plan.next), (None, Some(2)));
        assert_eq!(plan.idle, Some(Idle::InPlace("catch_up".into())));
    }

    /// One instance starts while a replay in place begins: all orders of their steps.
    ///
    /// Returns those in which the replay counts no instance, and the instance starts.
    fn starts_unnoticed(instance: &[char; 2]) -> Vec<String> {
        let (live, draining) = (
            row(r#"{"a":1,"st":"live","e":0,"m":1}"#),
            row(r#"{"a":1,"st":"draining","s":true,"e":1,"m":1,"t":2,"r":"x"}"#),
        );
        let [first, second] = instance;
        let orders = ["12dc", "1d2c", "1dc2", "d12c", "d1c2", "dc12"];
        let orders = orders.map(|order| {
            let order = order.replace('1', &first.to_string());
            order.replace('2', &second.to_string())
        });
        let is_unnoticed = |order: &String| {
            let (mut proc, mut has_row, mut counted, mut starts) = (&live, false, 0, false);
            for step in order.chars() {
                match step {
                    'w' => has_row = true,
                    'r' => starts = plan(proc, 1, None).serving.is_some(),
                    'd' => proc = &draining,
                    _ => counted = u32::from(has_row),
                }
            }
            counted == 0 && starts
        };
        orders.into_iter().filter(is_unnoticed).collect()
    }

    #[test]
    fn an_instance_that_writes_its_row_first_never_starts_unnoticed_by_a_replay_in_place() {
        assert_eq!(starts_unnoticed(&['w', 'r']), [""; 0]);
        // The other order has a hole.
        assert_eq!(starts_unnoticed(&['r', 'w']), ["rdcw"]);
    }

    #[test]
    fn an_unknown_state_starts_nothing_that_may_have_to_stop_and_stops_nothing_that_runs() {
        let stops = row(r#"{"a":2,"st":"of tomorrow","s":true,"e":2,"m":1}"#);
        assert_eq!(plan(&stops, 1, Some(2)).serving, Some(2));
        for running in [None, Some(1)] {
            let plan = plan(&stops, 1, running);
            assert_eq!(plan.serving, None);
            assert_eq!(plan.idle.unwrap().state(), ProcessorState::Waiting);
        }
        let goes_on = row(r#"{"a":2,"n":3,"st":"of tomorrow","s":false,"e":2,"m":1,"nm":1}"#);
        let plan = plan(&goes_on, 1, None);
        assert_eq!((plan.serving, plan.next), (Some(2), None));
    }
}
