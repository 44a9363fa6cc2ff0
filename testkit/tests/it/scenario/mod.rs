//! Scenarios pass if something happened, and the message of a failing one names what did not.
mod aggregate;
mod handlers;
mod listener;
mod perform;
mod projector;
mod rejections;
mod pipeline;
mod stored;
mod unlike;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Returns the message of a scenario that must fail.
fn failure(scenario: impl FnOnce()) -> String {
    match catch_unwind(AssertUnwindSafe(scenario)) {
        Ok(()) => panic!("the scenario holds"),
        Err(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => match payload.downcast::<&str>() {
                Ok(text) => (*text).to_owned(),
                Err(_) => panic!("the failure has no text"),
            },
        },
    }
}
