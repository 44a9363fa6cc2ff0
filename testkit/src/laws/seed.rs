//! The number of cases and their seed: set in code, or in the environment to repeat a failure.
pub(super) use crate::environment::SEED;
use crate::environment::{self, CASES};
use proptest::test_runner::{Config, RngSeed};
use std::env::VarError;

/// The number of cases and the seed. The environment overrides the code, and the code overrides
/// chance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: Option<u64>,
    pub(super) cases: u32,
}

impl Plan {
    /// 256 cases of a random seed.
    pub(super) const DEFAULT: Self = Self {
        seed: None,
        cases: 256,
    };

    /// Returns the configuration of the runner, and the seed that a failure prints.
    #[track_caller]
    pub(super) fn config(self) -> (Config, u64) {
        self.config_with(|name| std::env::var(name))
    }

    /// Returns the configurations of rounds to try one after the other, each with its seed, until a
    /// round has checked something.
    ///
    /// All cases of the first round may have been rejected by bad luck, if they are few. Together,
    /// the rounds have as many cases as are tried by default, or more if the first one has.
    #[track_caller]
    pub(super) fn rounds(self) -> impl Iterator<Item = (Config, u64)> {
        let (config, first) = self.config();
        let more = Self::DEFAULT
            .cases
            .checked_div(config.cases)
            .unwrap_or_default();
        (0..u64::from(more.max(1))).map(move |round| {
            let seed = first.wrapping_add(round);
            let mut config = config.clone();
            config.rng_seed = RngSeed::Fixed(seed);
            (config, seed)
        })
    }

    #[track_caller]
    fn config_with(self, variable: impl Fn(&str) -> Result<String, VarError>) -> (Config, u64) {
        let number = |name: &str| environment::number_in(name, variable(name));
        let seed = number(SEED).or(self.seed);
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let cases = number(CASES).map_or(self.cases, |cases| match u32::try_from(cases) {
            Ok(cases) => cases,
            Err(_) => panic!("{CASES} is {cases}: at most {} cases can be run", u32::MAX),
        });
        let config = Config {
            cases,
            rng_seed: RngSeed::Fixed(seed),
            // A library must not write files into the user's sources.
            failure_persistence: None,
            // A model in a database is slow, and a failure must be told before a test is killed.
            max_shrink_iters: 1024,
            max_shrink_time: 60_000,
            ..Config::default()
        };
        (config, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_counts_more_than_the_code() {
        let plan = Plan {
            seed: Some(7),
            cases: 10,
        };
        let (config, seed) = plan.config_with(|_| Err(VarError::NotPresent));
        assert_eq!((config.cases, seed), (10, 7));
        let (config, seed) =
            plan.config_with(|name| Ok(if name == SEED { "9" } else { " 11 " }.into()));
        assert_eq!((config.cases, seed), (11, 9));
        assert_eq!(config.rng_seed, RngSeed::Fixed(9));
    }

    #[test]
    fn rounds_have_different_seeds_and_as_many_cases_as_the_default() {
        let rounds = |cases| {
            let plan = Plan {
                seed: Some(7),
                cases,
            };
            plan.rounds().map(|(_, seed)| seed).collect::<Vec<_>>()
        };
        assert_eq!(rounds(100), [7, 8]);
        assert_eq!(rounds(256), [7]);
        assert_eq!(rounds(1000), [7]);
        assert_eq!(rounds(0), [7]);
        assert_eq!(rounds(1).len(), 256);
    }

    fn with(name: &str, value: &str) {
        Plan::DEFAULT.config_with(|asked| match asked == name {
            true => Ok(value.into()),
            false => Err(VarError::NotPresent),
        });
    }

    #[test]
    #[should_panic(expected = "FOLDSTREAM_SEED is \"x\", which cannot be read: it may be a number")]
    fn a_seed_that_is_no_number_is_an_error() {
        with(SEED, "x");
    }

    #[test]
    #[should_panic(
        expected = "FOLDSTREAM_CASES is 4294967296: at most 4294967295 cases can be run"
    )]
    fn more_cases_than_can_be_run_are_an_error() {
        with(CASES, "4294967296");
    }
}
