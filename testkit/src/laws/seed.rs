//! How many cases are tried, and from which seed: set in code, or from outside to run a failure again.
use proptest::test_runner::{Config, RngSeed};

/// Runs the cases of this seed, a number, instead of fresh ones.
pub(super) const SEED: &str = "FOLDSTREAM_SEED";
/// Tries this many cases, a number.
pub(super) const CASES: &str = "FOLDSTREAM_CASES";

/// The environment counts more than the code, the code more than chance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: Option<u64>,
    pub(super) cases: u32,
}

impl Plan {
    /// 256 cases of a fresh seed.
    pub(super) const DEFAULT: Self = Self {
        seed: None,
        cases: 256,
    };

    /// What to run, with the seed that a failure prints.
    pub(super) fn config(self) -> (Config, u64) {
        self.config_with(|name| std::env::var(name).ok())
    }

    fn config_with(self, variable: impl Fn(&str) -> Option<String>) -> (Config, u64) {
        let number = |name: &str| -> Option<u64> {
            let text = variable(name)?;
            match text.trim().parse() {
                Ok(number) => Some(number),
                Err(error) => panic!("{name} is {text:?}, which is no number: {error}"),
            }
        };
        let seed = number(SEED).or(self.seed);
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let cases = number(CASES).map_or(self.cases, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let config = Config {
            cases,
            rng_seed: RngSeed::Fixed(seed),
            // A library must not write files into the user's sources.
            failure_persistence: None,
            max_shrink_iters: 1024,
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
        let (config, seed) = plan.config_with(|_| None);
        assert_eq!((config.cases, seed), (10, 7));
        let (config, seed) =
            plan.config_with(|name| Some(if name == SEED { "9" } else { " 11 " }.into()));
        assert_eq!((config.cases, seed), (11, 9));
        assert_eq!(config.rng_seed, RngSeed::Fixed(9));
    }

    #[test]
    #[should_panic(expected = "FOLDSTREAM_SEED is \"x\", which is no number")]
    fn a_seed_that_is_no_number_is_an_error() {
        Plan::DEFAULT.config_with(|name| (name == SEED).then(|| "x".into()));
    }
}
