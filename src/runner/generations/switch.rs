//! The next step toward the end of a replay, as a function of the rows and of what the groups have
//! committed.
//!
//! # Why is the row `proc` written before the run is noted as done?
//! The compare-and-set of the row `proc` is the switch: it succeeds once, and only while the row
//! still names the run. A cancel writes the row of the run first and the row `proc` after it. If
//! the switch comes between the two, the cancel finds a row `proc` without its run, and says that
//! it came too late. If the row of the run said "done" first, an instance could not tell a switch
//! that is under way from a run that has ended without one.
use super::plan::is_known;
use crate::{
    control::{GenerationState, Generations, RunId, RunRow, RunState},
    ports::{Offset, PartitionId},
};
use std::collections::BTreeMap;

/// Offsets by partition. A partition without one counts as 0.
pub(super) type Offsets = BTreeMap<PartitionId, Offset>;

/// The offsets that the groups of two generations have committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Committed {
    /// Those of the generation that serves, read before those of the next one.
    pub(super) active: Offsets,
    pub(super) next: Offsets,
}

/// A write that brings a processor nearer to the end of its replay.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// The row `proc`: the next generation serves. Afterwards the row of the run.
    Switch(Generations),
    /// The row `proc`: the generation of before serves, and this one is given up.
    Release(Generations, Option<u32>),
}

/// Returns true if the next step depends on what the groups have committed.
pub(super) fn needs_offsets(proc: &Generations, run: Option<&RunRow>) -> bool {
    let is_catching_up = run.is_some_and(|run| run.state == RunState::CatchUp);
    proc.state == GenerationState::CATCH_UP && is_catching_up
}

/// Returns the next step of the processor `name`, if there is one now.
///
/// `is_gone` says that the row `proc` has named a run for a whole lease time that has no row, or
/// that has ended without a word about this processor.
pub(super) fn next_step(
    proc: &Generations,
    run: (RunId, Option<&RunRow>),
    name: &str,
    is_gone: bool,
    committed: Option<&Committed>,
) -> Option<Step> {
    if !is_known(&proc.state) || !proc.is_of(run.0) {
        return None;
    }
    let (id, run) = run;
    let of = run.and_then(|run| run.processor(name));
    let built = of.map(|of| of.generation).or(proc.next);
    let built = built.filter(|built| proc.has_left(*built));
    let release = || proc.without(id, run).map(|row| Step::Release(row, built));
    let (Some(run), Some(of)) = (run, of) else {
        return is_gone.then(release).flatten();
    };
    match run.state {
        RunState::Cancelled => release(),
        RunState::Done => is_gone.then(release).flatten(),
        RunState::CatchUp if proc.next == Some(of.generation) => {
            let (ends, committed) = (run.ends()?, committed?);
            let is_done = has_reached(&committed.next, &ends) && is_up_with_active(committed);
            is_done
                .then(|| proc.switched(id))
                .flatten()
                .map(Step::Switch)
        }
        _ => None,
    }
}

/// Returns true if nothing would be read from the next generation that is older than what the
/// active one has committed.
fn is_up_with_active(committed: &Committed) -> bool {
    has_reached(&committed.next, &committed.active)
}

fn has_reached(committed: &Offsets, ends: &Offsets) -> bool {
    let start = Offset::new(0);
    let mut ends = ends.iter();
    ends.all(|(partition, end)| committed.get(partition).unwrap_or(&start) >= end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Timestamp,
        control::{ReplayMode, RunProcessor},
    };

    const RUN: RunId = RunId::from_u128(10);

    fn at(offsets: &[u64]) -> Offsets {
        let numbered = (0u32..).zip(offsets);
        numbered
            .map(|(n, at)| (PartitionId::new("t", n), Offset::new(*at)))
            .collect()
    }

    fn run() -> RunRow {
        let of = RunProcessor {
            name: "carts".into(),
            generation: 2,
            model: 1,
            is_switched: false,
        };
        let at_micros = Timestamp::from_micros(1);
        RunRow::new(vec![of], ReplayMode::BlueGreen, None, 1, "ann", at_micros)
    }

    fn catch_up(ends: &[u64]) -> (Generations, RunRow) {
        let run = run().handed_over(&at(&[0, 0])).unwrap();
        let run = run.reset_done().unwrap().scanning().unwrap();
        let run = run.scanned(&at(ends)).unwrap();
        let (proc, generation) = Generations::first(1)
            .preparing(RUN, ReplayMode::BlueGreen)
            .unwrap();
        (proc.catching_up(RUN, generation, 1).unwrap(), run)
    }

    fn step(
        proc: &Generations,
        run: Option<&RunRow>,
        is_gone: bool,
        committed: Option<&Committed>,
    ) -> Option<Step> {
        next_step(proc, (RUN, run), "carts", is_gone, committed)
    }

    #[test]
    fn the_switch_waits_for_the_ends_of_the_scan_and_for_the_active_generation() {
        let (proc, run) = catch_up(&[5, 3]);
        assert!(needs_offsets(&proc, Some(&run)));
        for (next, active, expected) in [
            (&[5, 3][..], &[5, 3][..], true),
            (&[6, 3], &[6, 3], true),
            (&[4, 3], &[4, 3], false),
            (&[5, 2], &[5, 2], false),
            (&[5], &[5], false),
            // The active generation is ahead in one partition.
            (&[5, 3], &[5, 4], false),
            (&[9, 9], &[5, 4], true),
            // A partition that is new since the scan starts at 0.
            (&[5, 3], &[5, 3, 0], true),
            (&[5, 3], &[5, 3, 1], false),
            (&[5, 3, 1], &[5, 3, 1], true),
            (&[], &[], false),
        ] {
            let committed = Committed {
                active: at(active),
                next: at(next),
            };
            let found = step(&proc, Some(&run), false, Some(&committed));
            let switched =
                found.is_some_and(|step| step == Step::Switch(proc.switched(RUN).unwrap()));
            assert_eq!(switched, expected, "{next:?} {active:?}");
        }
        assert_eq!(
            step(&proc, Some(&run), false, None),
            None,
            "nothing is known"
        );
    }

    #[test]
    fn a_generation_is_not_switched_to_before_it_catches_up_or_by_another_run() {
        let (proc, row) = catch_up(&[0]);
        let all = Committed::default();
        for early in [run(), run().handed_over(&at(&[0])).unwrap()] {
            assert_eq!(step(&proc, Some(&early), false, Some(&all)), None);
        }
        let other = next_step(
            &proc,
            (RunId::from_u128(11), Some(&row)),
            "carts",
            true,
            Some(&all),
        );
        assert_eq!(other, None);
        let foreign = next_step(&proc, (RUN, Some(&row)), "orders", false, Some(&all));
        assert_eq!(foreign, None, "the run has no such processor");
        let (preparing, _) = Generations::first(1)
            .preparing(RUN, ReplayMode::BlueGreen)
            .unwrap();
        assert_eq!(step(&preparing, Some(&row), false, Some(&all)), None);
    }

    #[test]
    fn a_processor_is_released_from_a_run_that_is_cancelled_or_gone() {
        let (proc, row) = catch_up(&[5]);
        let released = Some(Step::Release(proc.without(RUN, None).unwrap(), Some(2)));
        let cancelled = row.cancelled().unwrap();
        let all = Committed {
            active: at(&[9]),
            next: at(&[9]),
        };
        assert_eq!(step(&proc, Some(&cancelled), false, Some(&all)), released);
        assert_eq!(
            step(&proc, None, false, Some(&all)),
            None,
            "its row may still come"
        );
        assert_eq!(step(&proc, None, true, Some(&all)), released);
        // The process has died before it named the generation: it has no model.
        let early = run().allocated("carts", 3).unwrap().cancelled().unwrap();
        let released_only = proc.without(RUN, Some(&early)).unwrap();
        let nothing_left = Some(Step::Release(released_only, None));
        assert_eq!(step(&proc, Some(&early), false, None), nothing_left);
        let done = row.switched("carts").unwrap();
        assert_eq!(done.state, RunState::Done);
        assert_eq!(step(&proc, Some(&done), false, Some(&all)), None);
        assert_eq!(step(&proc, Some(&done), true, Some(&all)), released);
    }

    /// All orders of the steps of a switch and of a cancel, each read and write apart.
    #[test]
    fn a_switch_and_a_cancel_at_once_have_one_result_in_every_order() {
        let mut results = std::collections::BTreeSet::new();
        // 0: the instance reads, 1: it writes `proc`, 2: it notes the run as done.
        // 3: the operator writes the run, 4: reads and writes `proc`, 5: settles the run.
        for order in orders(&[0, 1, 2], &[3, 4, 5]) {
            let (mut proc, mut run) = catch_up(&[0]);
            let (mut seen, mut has_switched, mut was_late) = (None, false, false);
            for step_of in &order {
                match step_of {
                    0 => {
                        let all = Committed::default();
                        seen = step(&proc, Some(&run), false, Some(&all)).map(|s| (s, proc.epoch));
                    }
                    1 => {
                        if let Some((Step::Switch(row), epoch)) = seen.take()
                            && epoch == proc.epoch
                        {
                            (proc, has_switched) = (row, true);
                        }
                    }
                    2 if has_switched => run = run.switched("carts").unwrap_or(run),
                    3 => run = run.cancelled().unwrap_or(run),
                    4 => match proc.without(RUN, None) {
                        Some(row) => proc = row,
                        None => was_late = proc.active == 2,
                    },
                    5 if was_late => run = run.switched("carts").unwrap_or(run),
                    _ => {}
                }
            }
            assert_eq!((proc.run, proc.next), (None, None), "{order:?}");
            let is_done = run.state == RunState::Done;
            assert_eq!(proc.active == 2, is_done, "{order:?}: {:?}", run.state);
            results.insert(is_done);
        }
        assert_eq!(results.len(), 2, "either may be first");
    }

    fn orders(a: &[u32], b: &[u32]) -> Vec<Vec<u32>> {
        let (Some(first), Some(second)) = (a.first(), b.first()) else {
            return vec![[a, b].concat()];
        };
        let begin = |head: &u32, rest: Vec<Vec<u32>>| -> Vec<Vec<u32>> {
            rest.into_iter()
                .map(|rest| [vec![*head], rest].concat())
                .collect()
        };
        let mut all = begin(first, orders(&a[1..], b));
        all.extend(begin(second, orders(a, &b[1..])));
        all
    }
}
