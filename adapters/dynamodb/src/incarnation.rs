//! The identity of the events table that the process works with, and the detection of its
//! replacement.
//!
//! A table that is deleted and created again, or restored under its old name, has another history
//! under the same keys. A head that was read from the old table may fit an empty slot of the new
//! one, since a condition sees nothing but the slot. The append would leave a hole in the stream
//! forever.
//!
//! DynamoDB gives every table an id, but only `DescribeTable` returns it. The id is therefore read
//! by `connect`, and again after a request was answered with "no such table". An operator who
//! replaces a table has to delete the old one first, and a busy process meets that gap.
//!
//! A table that was replaced between two requests of this process remains unnoticed here. For that
//! reason the repository confirms states that it has not used for a while.
use aws_sdk_dynamodb::types::TableDescription;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// The identity of the events table, as far as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct Incarnation {
    /// The incarnation, which grows whenever the table was found missing or replaced.
    number: AtomicU64,
    /// The table's id. `None` until the table was described.
    table: Mutex<Option<String>>,
}

impl Incarnation {
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// Takes note that a request was answered with "no such table".
    pub(crate) fn missing(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes note of the table as it was just described. Returns true if the table differs from the
    /// known one, or if none is known.
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

/// Returns the table's id, or its creation time if an emulator has no ids.
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
