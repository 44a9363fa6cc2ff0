//! The identity of the events table that the process works with, and the detection of its replacement.
//!
//! A table that is deleted and made again, or restored under its old name, has another history under the same keys. A head
//! that was read from the old one may fit an empty slot of the new one, since DynamoDB looks at nothing but the slot: the
//! stream would have a hole forever. DynamoDB gives every table an id of its own, but only `DescribeTable` tells it. So the
//! id is read where the table is described anyway, by `connect`, and again after a request was answered with "no such
//! table": whoever replaces a table must delete the old one first, and a process that is in use meets the gap.
//!
//! A table that was replaced between two requests of this process stays unnoticed here. The repository therefore confirms
//! states that it has not used for a while.
use aws_sdk_dynamodb::types::TableDescription;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// The identity of the events table, as far as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct Incarnation {
    /// Grows whenever the table was found missing or replaced.
    number: AtomicU64,
    /// The table's id; `None` until the table was described.
    table: Mutex<Option<String>>,
}

impl Incarnation {
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// A request was answered with "no such table".
    pub(crate) fn missing(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes note of the table as it was just described. True if it is not the one known so far, or if none is known.
    pub(crate) fn is_news(&self, found: &TableDescription) -> bool {
        let Some(found) = identity(found) else {
            return false;
        };
        let mut known = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == Some(&*found) {
            return false;
        }
        let was_known = known.replace(found).is_some();
        if was_known {
            self.number.fetch_add(1, Ordering::SeqCst);
        }
        true
    }
}

/// The table's id, or the time of its creation where an emulator has no ids.
fn identity(table: &TableDescription) -> Option<String> {
    let created = || table.creation_date_time().map(|at| format!("{at:?}"));
    table.table_id().map(ToOwned::to_owned).or_else(created)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: &str) -> TableDescription {
        TableDescription::builder().table_id(id).build()
    }

    #[test]
    fn another_table_id_is_another_incarnation_and_the_same_is_not() {
        let incarnation = Incarnation::default();
        assert!(incarnation.is_news(&table("a")));
        assert!(!incarnation.is_news(&table("a")));
        assert_eq!(incarnation.number(), 0);
        assert!(incarnation.is_news(&table("b")));
        assert_eq!(incarnation.number(), 1);
        incarnation.missing();
        assert!(!incarnation.is_news(&table("b")));
        assert_eq!(incarnation.number(), 2);
    }
}
