//! A query of the index.
use super::{ReadModelRow, location::Location, read::INDEX};
use crate::attributes::{Attributes, text};
use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use std::num::NonZeroU32;

/// A query of one partition of a read model's index.
///
/// # Example
/// ```
/// use foldstream_dynamodb::IndexQuery;
/// use std::num::NonZeroU32;
/// // The newest orders of a customer, if orders are sorted by their day.
/// let query = IndexQuery::new("customer-7")
///     .with_sort_prefix("2026-")
///     .descending()
///     .with_page_size(NonZeroU32::new(20).unwrap());
/// assert_eq!(query.partition(), "customer-7");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexQuery {
    partition: String,
    sort_prefix: Option<String>,
    is_descending: bool,
    page_size: Option<NonZeroU32>,
    after: Option<After>,
}

/// The row after which a query begins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct After {
    key: String,
    sort: String,
}

impl IndexQuery {
    /// Creates a query of all rows of a partition, in ascending order.
    #[must_use]
    pub fn new(partition: impl Into<String>) -> Self {
        Self {
            partition: partition.into(),
            sort_prefix: None,
            is_descending: false,
            page_size: None,
            after: None,
        }
    }
    /// Returns only rows whose sort text begins with this text.
    #[must_use]
    pub fn with_sort_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.sort_prefix = Some(prefix.into()).filter(|prefix: &String| !prefix.is_empty());
        self
    }
    /// Returns the rows in descending order.
    #[must_use]
    pub const fn descending(mut self) -> Self {
        self.is_descending = true;
        self
    }
    /// Sets the number of rows that one request reads. Default: as many as fit into 1 MB.
    ///
    /// A page is read when the stream is polled for its first row, so a caller that takes 20 rows
    /// pays for one page of 20.
    #[must_use]
    pub const fn with_page_size(mut self, rows: NonZeroU32) -> Self {
        self.page_size = Some(rows);
        self
    }
    /// Begins after a row, with the key and the sort text that it had when it was returned. The row
    /// need not exist any more.
    ///
    /// The sort text is that of its [`IndexKey`](super::IndexKey), or the key if it has none.
    #[must_use]
    pub fn with_start_after(mut self, key: impl Into<String>, sort: impl Into<String>) -> Self {
        let (key, sort) = (key.into(), sort.into());
        self.after = Some(After { key, sort });
        self
    }
    /// Returns the partition.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    pub(super) fn request<T: ReadModelRow>(
        &self,
        location: &Location<T>,
        request: QueryFluentBuilder,
    ) -> QueryFluentBuilder {
        let partition = location.index_partition(&self.partition);
        let condition = match &self.sort_prefix {
            None => "ip = :partition",
            Some(_) => "ip = :partition AND begins_with(#sort, :prefix)",
        };
        let mut request = request
            .key_condition_expression(condition)
            .expression_attribute_values(":partition", text(&*partition))
            .scan_index_forward(!self.is_descending)
            .set_limit(
                self.page_size
                    .map(|n| i32::try_from(n.get()).unwrap_or(i32::MAX)),
            )
            .set_exclusive_start_key(self.start(location, partition));
        if let Some(prefix) = &self.sort_prefix {
            request = request
                .expression_attribute_names("#sort", INDEX.1[1])
                .expression_attribute_values(":prefix", text(&**prefix));
        }
        request
    }

    fn start<T: ReadModelRow>(
        &self,
        location: &Location<T>,
        partition: String,
    ) -> Option<Attributes> {
        let After { key, sort } = self.after.as_ref()?;
        let mut start = location.row(key);
        let [ip, is] = INDEX.1;
        start.extend([(ip.into(), text(partition)), (is.into(), text(&**sort))]);
        Some(start)
    }
}
