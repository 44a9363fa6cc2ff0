//! Scenarios hold on what happened, and a failing one says what did not.
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

/// What a failing scenario says.
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
