//! The history of a scenario in the message of a failed assertion.
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// Runs an assertion of the user's. If the assertion panics, this function panics with its message
/// and the history.
#[track_caller]
pub(super) fn with_history<T>(check: impl FnOnce() -> T, history: impl FnOnce() -> String) -> T {
    match catch_unwind(AssertUnwindSafe(check)) {
        Ok(value) => value,
        Err(panic) => match message(&*panic) {
            Some(message) => panic!("{}\n{}", message.trim_end(), history()),
            None => resume_unwind(panic),
        },
    }
}

fn message(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_assertion_gets_the_history_and_any_other_panic_is_passed_on() {
        let panic =
            catch_unwind(|| with_history(|| panic!("no\n"), || "history".into())).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "no\nhistory");
        let panic =
            catch_unwind(|| with_history(|| resume_unwind(Box::new(7)), String::new)).unwrap_err();
        assert_eq!(panic.downcast_ref::<i32>(), Some(&7));
        assert_eq!(with_history(|| 1, String::new), 1);
    }
}
