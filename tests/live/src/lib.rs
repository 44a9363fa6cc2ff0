//! What the live suites share. The suites themselves are in `tests/live`.
