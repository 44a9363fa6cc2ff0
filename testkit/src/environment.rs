//! The environment variables that tests read.
//!
//! A value that cannot be read is a panic that lists the allowed values. If such a variable were
//! ignored, a test could pass without running as it was asked to.
use std::env::{self, VarError};

/// The variable with the seed to replay.
pub(crate) const SEED: &str = "FOLDSTREAM_SEED";
/// The variable with the number of cases of the property tests.
#[cfg(feature = "proptest")]
pub(crate) const CASES: &str = "FOLDSTREAM_CASES";
/// The variable that selects the long form of tests.
pub(crate) const LONG: &str = "FOLDSTREAM_LONG";
/// The variable that lets the schema check record new golden files.
pub(crate) const BLESS: &str = "FOLDSTREAM_BLESS";

/// Returns the number in a variable, or `None` if the variable is not set.
///
/// # Panics
/// If the value is not a number.
#[track_caller]
pub(crate) fn number(name: &str) -> Option<u64> {
    number_in(name, env::var(name))
}

/// Returns true if a variable is `1`, and false if it is `0`, empty or not set.
///
/// # Panics
/// If the variable has another value.
#[track_caller]
pub(crate) fn is_set(name: &str) -> bool {
    is_set_in(name, env::var(name))
}

#[track_caller]
pub(crate) fn number_in(name: &str, value: Result<String, VarError>) -> Option<u64> {
    let text = text(name, value, NUMBER)?;
    match text.trim().parse() {
        Ok(number) => Some(number),
        Err(_) => refuse(name, &text, NUMBER),
    }
}

#[track_caller]
pub(crate) fn is_set_in(name: &str, value: Result<String, VarError>) -> bool {
    let Some(text) = text(name, value, FLAG) else {
        return false;
    };
    match text.trim() {
        "1" => true,
        "0" | "" => false,
        _ => refuse(name, &text, FLAG),
    }
}

const NUMBER: &str = "a number from 0 to 18446744073709551615, or not set";
const FLAG: &str = "1 (on) or 0 (off), or not set (off)";

#[track_caller]
fn text(name: &str, value: Result<String, VarError>, allowed: &str) -> Option<String> {
    match value {
        Ok(text) => Some(text),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(text)) => refuse(name, &text.to_string_lossy(), allowed),
    }
}

#[track_caller]
fn refuse(name: &str, text: &str, allowed: &str) -> ! {
    panic!("{name} is {text:?}, which cannot be read: it may be {allowed}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        ffi::OsString,
        panic::{AssertUnwindSafe, catch_unwind},
    };

    fn refused<T>(read: impl FnOnce() -> T) -> String {
        let panic = catch_unwind(AssertUnwindSafe(read)).map(|_| ());
        *panic.unwrap_err().downcast::<String>().unwrap()
    }

    #[test]
    fn a_number_is_read_and_anything_else_is_refused() {
        let read = |value: &str| number_in(SEED, Ok(value.into()));
        assert_eq!(read(" 7 "), Some(7));
        assert_eq!(number_in(SEED, Err(VarError::NotPresent)), None);
        for value in ["", "x", "-1", "1.5", "18446744073709551616"] {
            assert_eq!(
                refused(|| read(value)),
                format!("FOLDSTREAM_SEED is {value:?}, which cannot be read: it may be {NUMBER}")
            );
        }
    }

    #[test]
    fn a_flag_is_one_or_nothing_and_anything_else_is_refused() {
        let read = |value: &str| is_set_in(LONG, Ok(value.into()));
        assert!(read("1") && !read("0") && !read(""));
        assert!(!is_set_in(LONG, Err(VarError::NotPresent)));
        for value in ["yes", "true", "2", "on"] {
            assert_eq!(
                refused(|| read(value)),
                format!("FOLDSTREAM_LONG is {value:?}, which cannot be read: it may be {FLAG}")
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_text_is_refused_and_not_taken_for_unset() {
        use std::os::unix::ffi::OsStringExt;
        let value = || Err(VarError::NotUnicode(OsString::from_vec(vec![b'1', 0xff])));
        for text in [
            refused(|| number_in(SEED, value())),
            refused(|| is_set_in(LONG, value())),
        ] {
            assert!(text.contains("cannot be read"), "{text}");
        }
    }
}
