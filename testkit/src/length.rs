//! Lengths of tests: short in every run, long with `FOLDSTREAM_LONG=1`.
//!
//! A simulation finds more, the more seeds it runs; but every push waits for it. So one test has two lengths. Each
//! function here takes both and returns the one to run:
//!
//! | `FOLDSTREAM_LONG` | length |
//! |---|---|
//! | not set, empty, or `0` | short |
//! | `1` | long |
//! | anything else | a panic that says what the variable may be |
//!
//! A line on standard error says which length ran, also for a test that passes: a nightly run whose variable got lost
//! would otherwise look like a long one.
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

/// Returns true if tests run in their long form: `FOLDSTREAM_LONG` is `1`.
///
/// # Panics
/// If the variable is neither `1`, `0`, empty nor unset.
#[must_use]
#[track_caller]
pub fn is_long() -> bool {
    environment::is_set(LONG)
}

/// Returns `short`, or `long` with `FOLDSTREAM_LONG=1`, and prints which of the two it is. `what` says what is counted.
///
/// # Panics
/// If the variable cannot be read.
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

/// Returns the seeds of a simulation: `short` or `long` many from 0 on, or only the seed that `FOLDSTREAM_SEED` names,
/// to replay a failure. Prints which of the three it is.
///
/// # Panics
/// If one of the two variables cannot be read.
#[track_caller]
pub fn seeds(short: u64, long: u64) -> Range<u64> {
    if let Some(seed) = environment::number(SEED) {
        // An unreadable length is refused also where the seed decides.
        let _ = is_long();
        print(&format!("length: only seed {seed}, by {SEED}"));
        return one(seed);
    }
    0..of("seeds", short, long)
}

/// Returns the range of one seed.
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

/// Prints past the capture of a test's output, which is only shown if the test fails.
fn print(line: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a thread without a name");
    // Without a standard error there is nobody to tell.
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
