//! Each law catches an aggregate, a projector or a store that breaks only this law, and describes
//! the failure.
mod aggregate;
mod exhaustive;
mod ids;
mod projector;
mod serial;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Returns the message of a check that must fail.
fn failure<T>(check: impl FnOnce() -> T) -> String {
    match catch_unwind(AssertUnwindSafe(check)) {
        Ok(_) => panic!("the laws hold"),
        Err(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => match payload.downcast::<&str>() {
                Ok(text) => (*text).to_owned(),
                Err(_) => panic!("the failure has no text"),
            },
        },
    }
}

/// Compares a text with the golden file that was reviewed when the test was written.
#[track_caller]
fn golden(text: &str, expected: &str) {
    let text = text.trim_end();
    assert!(text == expected.trim(), "<<<GOLDEN\n{text}\nGOLDEN>>>");
}
