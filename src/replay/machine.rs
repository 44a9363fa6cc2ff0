//! The decisions of a run: which step comes next, by the row of the run and what this process
//! knows.
//!
//! ```text
//! Claim
//! -> for each processor: Allocate (row of the run), Name (row `proc`)
//! -> in place, for each processor: Drain
//! -> HandOver -> for each processor: Reset -> ResetDone -> BeginScan
//! -> Scan -> for each processor: Boot, CatchUp -> End
//! ```
//! Nothing here awaits. Every step is one operation on a row, one call of a projector, or the scan,
//! so that a process may die between any two. A process that takes the run over begins again with
//! `Claim`.
use super::error::Stop;
use crate::control::{ReplayMode, RunRow, RunState};

/// The most resets of a processor that may fail before the run is cancelled.
const MAX_RESETS: u32 = 3;

/// The next step of a run. The number is that of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the epoch of the lease into the row of the run.
    Claim,
    /// Read the row `proc`, and write the generation that follows from it into the row of the run.
    Allocate(usize),
    /// Write the row `proc`, which names the run from then on.
    Name(usize),
    /// Wait until no instance handles an event of the live generation. In place only.
    Drain(usize),
    /// Write the ends of the topics into the row of the run.
    HandOver,
    /// Empty the model of the generation, once.
    Reset(usize),
    /// Note in the row of the run that every model is empty.
    ResetDone,
    /// Note in the row of the run that the scan begins.
    BeginScan,
    /// Remove the part of the history from the live model that a filtered replay repeats.
    ResetPart(usize),
    /// Scan what is not scanned yet, then note the ends of the topics in the row of the run.
    Scan,
    /// Write where the generation begins to consume.
    Boot(usize),
    /// Give the generation to the runners, in the row `proc`.
    CatchUp(usize),
    /// Note in the row of the run that it is cancelled.
    Cancel,
    /// Take the run out of the row `proc`.
    Release(usize),
    /// The run has ended for this process.
    End,
}

/// The state of one processor, as far as this process has brought it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// The row of the run holds a generation that this process has allocated.
    is_allocated: bool,
    /// The row `proc` names the run and the generation.
    is_named: bool,
    is_drained: bool,
    is_reset: bool,
    failed_resets: u32,
    is_booted: bool,
    is_caught_up: bool,
    is_released: bool,
}

/// The decisions of one process about a run.
#[derive(Debug)]
pub(super) struct Machine {
    epoch: u64,
    processors: Vec<Progress>,
    /// The reason for which this process cancels the run.
    stop: Option<Stop>,
}

impl Machine {
    /// Creates the decisions of the holder of a lease. Nothing that an earlier holder has done
    /// before the scan counts: its reset may still be under way.
    pub(super) fn new(epoch: u64, processors: usize) -> Self {
        Self {
            epoch,
            processors: vec![Progress::default(); processors],
            stop: None,
        }
    }

    /// Returns the next step.
    pub(super) fn next(&self, run: &RunRow) -> Step {
        match run.state {
            RunState::Cancelled => return self.each(|p| p.is_released, Step::Release),
            RunState::Done | RunState::Unknown => return Step::End,
            _ => {}
        }
        if run.epoch < self.epoch {
            return Step::Claim;
        }
        if run.epoch > self.epoch {
            return Step::End;
        }
        if self.stop.is_some() {
            return Step::Cancel;
        }
        match run.state {
            _ if run.filter.is_some() => self.next_filtered(run.state),
            RunState::Preparing | RunState::Draining => self.next_early(run),
            RunState::ResetDone => match self.unallocated() {
                Some(of) => Step::Allocate(of),
                None => Step::BeginScan,
            },
            RunState::Scanning => Step::Scan,
            RunState::CatchUp => {
                let boots = self.each(|p| p.is_booted, Step::Boot);
                if boots == Step::End {
                    self.each(|p| p.is_caught_up, Step::CatchUp)
                } else {
                    boots
                }
            }
            RunState::Done | RunState::Cancelled | RunState::Unknown => Step::End,
        }
    }

    fn next_early(&self, run: &RunRow) -> Step {
        // A generation is named before the next one is allocated, so that a processor that another
        // run works on is noticed early.
        for (of, progress) in self.processors.iter().enumerate() {
            if !progress.is_allocated {
                return Step::Allocate(of);
            }
            if !progress.is_named {
                return Step::Name(of);
            }
        }
        // Until the hand-over is taken, a cancelled run in place has done no harm.
        if run.mode == ReplayMode::InPlace
            && let open @ Step::Drain(_) = self.each(|p| p.is_drained, Step::Drain)
        {
            return open;
        }
        if run.hand_over().is_none() {
            return Step::HandOver;
        }
        match self.each(|p| p.is_reset, Step::Reset) {
            Step::End => Step::ResetDone,
            reset => reset,
        }
    }

    fn next_filtered(&self, state: RunState) -> Step {
        match state {
            RunState::Preparing => match self.each(|p| p.is_reset, Step::ResetPart) {
                Step::End => Step::BeginScan,
                reset => reset,
            },
            RunState::Scanning => Step::Scan,
            _ => Step::End,
        }
    }

    /// Returns the step of the first processor that is not done, or the end.
    fn each(&self, is_done: impl Fn(&Progress) -> bool, step: impl Fn(usize) -> Step) -> Step {
        let open = self.processors.iter().position(|p| !is_done(p));
        open.map_or(Step::End, step)
    }

    fn unallocated(&self) -> Option<usize> {
        self.processors.iter().position(|p| !p.is_allocated)
    }

    /// Notes that a step was taken.
    pub(super) fn done(&mut self, step: Step) {
        let mut set = |of: usize, note: fn(&mut Progress)| {
            if let Some(progress) = self.processors.get_mut(of) {
                note(progress);
            }
        };
        match step {
            Step::Allocate(of) => set(of, |p| {
                p.is_allocated = true;
                (p.is_named, p.is_drained, p.is_reset) = (false, false, false);
            }),
            Step::Name(of) => set(of, |p| p.is_named = true),
            Step::Drain(of) => set(of, |p| p.is_drained = true),
            Step::Reset(of) | Step::ResetPart(of) => set(of, |p| p.is_reset = true),
            Step::Boot(of) => set(of, |p| p.is_booted = true),
            Step::CatchUp(of) => set(of, |p| p.is_caught_up = true),
            Step::Release(of) => set(of, |p| p.is_released = true),
            Step::Claim
            | Step::HandOver
            | Step::ResetDone
            | Step::BeginScan
            | Step::Scan
            | Step::Cancel
            | Step::End => {}
        }
    }

    /// Notes that another process has changed the row `proc` since the generation was allocated:
    /// another one is allocated.
    pub(super) fn not_named(&mut self, of: usize) {
        if let Some(progress) = self.processors.get_mut(of) {
            progress.is_allocated = false;
        }
    }

    /// Notes that a reset has failed, or that its outcome is not known. It is not repeated: its
    /// late effect would empty what is built meanwhile. Another generation is allocated. In place
    /// that would be the same model. Returns the number of resets if there were enough.
    pub(super) fn reset_failed(&mut self, of: usize, mode: ReplayMode) -> Option<u32> {
        let Some(progress) = self.processors.get_mut(of) else {
            return Some(0);
        };
        progress.failed_resets += 1;
        progress.is_allocated = false;
        let most = match mode {
            ReplayMode::BlueGreen => MAX_RESETS,
            ReplayMode::InPlace => 1,
        };
        (progress.failed_resets >= most).then_some(progress.failed_resets)
    }

    /// Cancels the run for a reason of this process.
    pub(super) fn cancel(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
    }

    /// Returns the reason for which this process has cancelled the run.
    pub(super) const fn stop(&mut self) -> Option<Stop> {
        self.stop.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Timestamp,
        control::{RunFilter, RunProcessor},
        ports::{Offset, PartitionId},
    };
    use std::collections::BTreeMap;

    fn row(names: &[&str], filter: Option<RunFilter>) -> RunRow {
        let processors = names.iter().map(|name| RunProcessor {
            name: (*name).into(),
            generation: 0,
            model: 1,
            is_switched: false,
        });
        let (mode, at) = (ReplayMode::BlueGreen, Timestamp::from_micros(0));
        RunRow::new(processors.collect(), mode, filter, 2, "ann", at)
    }
    fn ends() -> BTreeMap<PartitionId, Offset> {
        [(PartitionId::new("t", 0), Offset::new(5))].into()
    }
    /// Takes a step that always succeeds, as the driver does.
    fn take(machine: &mut Machine, row: &mut RunRow) -> Step {
        let step = machine.next(row);
        let next = match step {
            Step::Claim => row.claimed(machine.epoch),
            Step::Allocate(of) => {
                let name = row.processors[of].name.clone();
                row.allocated(&name, row.processors[of].generation + 1)
            }
            Step::HandOver => row.handed_over(&ends()),
            Step::ResetDone => row.reset_done(),
            Step::BeginScan => row.scanning(),
            Step::Scan if row.filter.is_some() => row.filtered_done(),
            Step::Scan => row.scanned(&ends()),
            Step::Cancel => row.cancelled(),
            _ => Some(row.clone()),
        };
        *row = next.unwrap_or_else(|| panic!("{step:?} does not apply to {row:?}"));
        machine.done(step);
        step
    }
    fn take_until_end(machine: &mut Machine, row: &mut RunRow) -> Vec<Step> {
        let mut steps = Vec::new();
        while steps.len() < 50 {
            match take(machine, row) {
                Step::End => return steps,
                step => steps.push(step),
            }
        }
        panic!("no end after {steps:?}");
    }

    #[test]
    fn a_full_run_names_all_processors_then_hands_over_then_resets_then_scans() {
        let (mut machine, mut row) = (Machine::new(1, 2), row(&["a", "b"], None));
        let steps = take_until_end(&mut machine, &mut row);
        let expected = [
            Step::Claim,
            Step::Allocate(0),
            Step::Name(0),
            Step::Allocate(1),
            Step::Name(1),
            Step::HandOver,
            Step::Reset(0),
            Step::Reset(1),
            Step::ResetDone,
            Step::BeginScan,
            Step::Scan,
            Step::Boot(0),
            Step::Boot(1),
            Step::CatchUp(0),
            Step::CatchUp(1),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn who_takes_over_before_the_scan_allocates_again_and_resets_again() {
        for died_after in 0..9 {
            let (mut first, mut row) = (Machine::new(1, 1), row(&["a"], None));
            let mut last = Step::End;
            for _ in 0..=died_after {
                last = take(&mut first, &mut row);
            }
            let was_scanning = row.state == RunState::Scanning || row.state == RunState::CatchUp;
            let before = row.processors[0].generation;
            let mut second = Machine::new(2, 1);
            let steps = take_until_end(&mut second, &mut row);
            assert_eq!(steps[0], Step::Claim, "after {last:?}");
            assert_eq!(
                steps.contains(&Step::Reset(0)),
                !was_scanning,
                "after {last:?}"
            );
            if !was_scanning {
                assert!(row.processors[0].generation > before, "after {last:?}");
            }
            // The former holder does nothing more.
            assert_eq!(first.next(&row), Step::End);
        }
    }

    #[test]
    fn a_failed_reset_takes_another_generation_and_a_third_one_cancels() {
        let (mut machine, mut row) = (Machine::new(1, 1), row(&["a"], None));
        let mut generations = Vec::new();
        loop {
            match machine.next(&row) {
                Step::Reset(0) => {
                    generations.push(row.processors[0].generation);
                    if machine.reset_failed(0, ReplayMode::BlueGreen).is_some() {
                        machine.cancel(Stop::Cancelled);
                        break;
                    }
                }
                _ => drop(take(&mut machine, &mut row)),
            }
        }
        assert_eq!(generations, [1, 2, 3]);
        let steps = take_until_end(&mut machine, &mut row);
        assert_eq!(steps, [Step::Cancel, Step::Release(0)], "the run row first");
        assert_eq!(row.state, RunState::Cancelled);
    }

    #[test]
    fn in_place_all_instances_are_drained_before_the_hand_over_and_a_failed_reset_cancels() {
        let (mut machine, mut row) = (Machine::new(1, 2), row(&["a", "b"], None));
        row.mode = ReplayMode::InPlace;
        let steps = take_until_end(&mut machine, &mut row);
        let early = [
            Step::Claim,
            Step::Allocate(0),
            Step::Name(0),
            Step::Allocate(1),
            Step::Name(1),
            Step::Drain(0),
            Step::Drain(1),
            Step::HandOver,
            Step::Reset(0),
        ];
        assert_eq!(steps[..early.len()], early);
        assert_eq!(machine.reset_failed(0, ReplayMode::InPlace), Some(1));
    }

    #[test]
    fn a_conflict_on_the_row_of_the_processor_allocates_again() {
        let (mut machine, mut row) = (Machine::new(1, 1), row(&["a"], None));
        while machine.next(&row) != Step::Name(0) {
            take(&mut machine, &mut row);
        }
        machine.not_named(0);
        assert_eq!(machine.next(&row), Step::Allocate(0));
    }

    #[test]
    fn a_run_that_an_operator_cancels_is_released_wherever_it_was() {
        for cancelled_after in 0..15 {
            let (mut machine, mut row) = (Machine::new(1, 2), row(&["a", "b"], None));
            for _ in 0..=cancelled_after {
                take(&mut machine, &mut row);
            }
            row = row.cancelled().unwrap();
            let steps = take_until_end(&mut machine, &mut row);
            assert_eq!(steps, [Step::Release(0), Step::Release(1)]);
        }
    }

    #[test]
    fn a_filtered_run_touches_no_row_of_a_processor() {
        let (mut machine, mut row) = (Machine::new(1, 1), row(&["a"], Some(RunFilter::default())));
        let steps = take_until_end(&mut machine, &mut row);
        let expected = [Step::Claim, Step::ResetPart(0), Step::BeginScan, Step::Scan];
        assert_eq!(steps, expected);
        assert_eq!(row.state, RunState::Done);
    }
}
