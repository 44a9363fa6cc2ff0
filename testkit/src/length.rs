//! Short and long forms of tests, selected by the environment variable `FOLDSTREAM_LONG`.
//!
//! A simulation finds more if it runs more seeds, but every push waits for it. So one test has two
//! lengths. Each function of this module takes both and returns the one to run:
//!
//! | `FOLDSTREAM_LONG` | length |
//! |---|---|
//! | not set, empty, or `0` | short |
//! | `1` | long |
//! | anything else | a panic that lists the allowed values |
//!
//! A line on standard error says which length ran, even if the test passes. Otherwise a nightly run
//! whose variable got lost would look like a long one.
//!
//! ```text
//! length: short, 300 seeds (long: 10000, by FOLDSTREAM_LONG=1) in simulation::nothing_is_lost
//! ```
//!
//! # Example
//! ```
//! use foldstream_testkit::{faults::{Fault, Faults}, length};
//! for seed in length::seeds(20, 5_000) {
//!     let faults = Faults::seeded(seed).with(Fault::LoseReply.anywhere().one_in(3));
//!     // Run the system on `faults`, and assert what must hold whatever goes wrong.
//!     # drop(faults);
//! }
//! let kills = length::of("kills", 2, 100);
//! assert!(kills == 2 || kills == 100);
//! ```
use crate::environment::{self, LONG, SEED};
use std::{fmt::Display, io::Write as _, ops::Range};

/// Returns true if `FOLDSTREAM_LONG` is `1`, so that tests run in their long form.
///
/// # Panics
/// If the variable is neither `1`, `0`, empty nor unset.
#[must_use]
#[track_caller]
pub fn is_long() -> bool {
    environment::is_set(LONG)
}

/// Returns `short`, or `long` with `FOLDSTREAM_LONG=1`, and prints the selected length.
///
/// `what` names the things that are counted, in the plural.
///
/// # Panics
/// If the variable is neither `1`, `0`, empty nor unset.
///
/// # Example
/// ```
/// use foldstream_testkit::length;
/// for kill in 0..length::of("kills", 3, 200) {
///     // Start a process, kill it, and check what is left.
///     # let _ = kill;
/// }
/// ```
#[must_use]
#[track_caller]
pub fn of<N: Display>(what: &str, short: N, long: N) -> N {
    let is_long = is_long();
    print(&line(what, &short, &long, is_long));
    if is_long { long } else { short }
}

/// Returns the seeds that a simulation runs, and prints the selected length.
///
/// These are the seeds from 0 up to `short`, or up to `long` with `FOLDSTREAM_LONG=1`. To replay a
/// failure, `FOLDSTREAM_SEED` selects a single seed.
///
/// # Panics
/// If one of the two variables has a value that is not allowed.
///
/// # Example
/// ```
/// use foldstream_testkit::length;
/// let seeds = length::seeds(20, 5_000).count();
/// assert!([1, 20, 5_000].contains(&seeds));
/// ```
#[track_caller]
pub fn seeds(short: u64, long: u64) -> Range<u64> {
    if let Some(seed) = environment::number(SEED) {
        // Panics on a length that is not allowed, even though the seed decides.
        let _ = is_long();
        print(&format!("length: only seed {seed}, by {SEED}"));
        return one(seed);
    }
    0..of("seeds", short, long)
}

/// Returns the range that holds one seed.
#[track_caller]
pub(crate) fn one(seed: u64) -> Range<u64> {
    let Some(end) = seed.checked_add(1) else {
        panic!("{SEED} is {seed}, which no range of seeds can end after: choose a lower seed")
    };
    seed..end
}

fn line(what: &str, short: &impl Display, long: &impl Display, is_long: bool) -> String {
    if is_long {
        return format!("length: long, {long} {what} (by {LONG}=1; short: {short})");
    }
    format!("length: short, {short} {what} (long: {long}, by {LONG}=1)")
}

/// Prints a line directly to standard error. The captured output of a test is shown only if it
/// fails.
fn print(line: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a thread without a name");
    // If standard error is closed, the line is dropped: it must not fail the test.
    let _ = writeln!(std::io::stderr(), "{line} in {test}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_which_length_ran_and_how_to_get_the_other() {
        assert_eq!(
            line("kills", &3, &200, false),
            "length: short, 3 kills (long: 200, by FOLDSTREAM_LONG=1)"
        );
        assert_eq!(
            line("kills", &3, &200, true),
            "length: long, 200 kills (by FOLDSTREAM_LONG=1; short: 3)"
        );
    }

    #[test]
    #[should_panic(expected = "choose a lower seed")]
    fn the_last_seed_is_refused_and_not_left_out() {
        let _ = one(u64::MAX);
    }
}
