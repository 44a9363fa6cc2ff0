//! The package of the live suites, which are in `tests/live`.
