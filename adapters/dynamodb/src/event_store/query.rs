//! Strongly consistent reads of the items of one stream: by key, and page by page.
use super::{
    decode::{StoredItem, Unreadable},
    encode,
};
use crate::{
    attributes::{Attributes, number, text},
    client::Connection,
    error::Failure,
};
use foldstream::{StreamId, Version, ports::EventStoreError};
use std::collections::VecDeque;

/// Sizes of growing pages in items: of the first one, the factor from one to the next, and the
/// largest limit. Beyond that, DynamoDB's limit of 1 MB per page applies.
const FIRST_GROWING: i32 = 16;
const GROWTH: i32 = 4;
const MOST_GROWN: i32 = 1024;

/// Reads the item that starts at `first`, strongly consistently. `after` is the last version that
/// was read as part of a whole commit, for errors.
pub(super) async fn get_item(
    connection: &Connection,
    stream: &StreamId,
    first: Version,
    after: Version,
) -> Result<Option<StoredItem>, EventStoreError> {
    let found = try_get_item(connection, stream, first).await;
    match found.map_err(Failure::into_event_store)? {
        None => Ok(None),
        Some(item) => StoredItem::read(item)
            .map(Some)
            .map_err(|e| e.into_error(stream, after)),
    }
}

pub(super) async fn try_get_item(
    connection: &Connection,
    stream: &StreamId,
    first: Version,
) -> Result<Option<Attributes>, Failure> {
    let request = connection
        .once()
        .get_item()
        .table_name(connection.events())
        .set_key(Some(encode::key(stream, first)))
        .consistent_read(true);
    let target = connection.at("GetItem", connection.events());
    match connection.send(target, || request.clone().send()).await {
        Ok(answer) => Ok(answer.item),
        Err(e) => Err(Failure::of(e, target)),
    }
}

/// The direction of a query, and its first version.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// Forwards, from this version.
    AtLeast(Version),
    /// Backwards, from this version or from the tail (`None`).
    AtMost(Option<Version>),
}

/// The items of a strongly consistent query, fetched page by page until there is no
/// `LastEvaluatedKey`.
#[derive(Debug)]
pub(super) struct Query {
    connection: Connection,
    stream: StreamId,
    from: From,
    /// The most items on a page. `None` for as many as fit.
    pub(super) page: Option<i32>,
    /// True if each page is larger than the one before, until there is no limit.
    grows: bool,
    /// An item that a caller examined and left. It comes before those in the buffer.
    seen: Option<Result<StoredItem, Unreadable>>,
    buffer: VecDeque<Attributes>,
    next: Option<Attributes>,
    finished: bool,
}

impl Query {
    pub(super) const fn new(
        connection: Connection,
        stream: StreamId,
        from: From,
        page: Option<i32>,
    ) -> Self {
        Self {
            connection,
            stream,
            from,
            page,
            grows: false,
            seen: None,
            buffer: VecDeque::new(),
            next: None,
            finished: false,
        }
    }

    /// Makes the pages grow, for a reader who may stop at any time and pays for all that is
    /// fetched.
    pub(super) const fn growing(mut self) -> Self {
        self.grows = true;
        self.page = Some(FIRST_GROWING);
        self
    }

    /// Returns the next item. `after` is the last version that was read as part of a whole commit,
    /// for errors.
    pub(super) async fn next(
        &mut self,
        after: Version,
    ) -> Result<Option<StoredItem>, EventStoreError> {
        // A page may be empty or shorter than requested, and still not be the last.
        while self.seen.is_none() && self.buffer.is_empty() && !self.finished {
            self.fetch().await.map_err(Failure::into_event_store)?;
        }
        match self.buffered() {
            None => Ok(None),
            Some(Ok(item)) => {
                self.room_for_rest_of(&item);
                Ok(Some(item))
            }
            Some(Err(e)) => Err(e.into_error(&self.stream, after)),
        }
    }

    /// Returns the next item of the fetched page.
    fn buffered(&mut self) -> Option<Result<StoredItem, Unreadable>> {
        let seen = self.seen.take();
        seen.or_else(|| self.buffer.pop_front().map(StoredItem::read))
    }

    /// Returns the next item of the fetched page, if it is the wanted one.
    ///
    /// Any other item, and one that cannot be read, is left for [`next`](Self::next).
    pub(super) fn next_buffered_if(
        &mut self,
        wanted: impl FnOnce(&StoredItem) -> bool,
    ) -> Option<StoredItem> {
        match self.buffered()? {
            Ok(item) if wanted(&item) => Some(item),
            other => {
                self.seen = Some(other);
                None
            }
        }
    }

    /// Extends the page so that it holds the other parts of a split commit: a limit counts commits,
    /// but a page counts items.
    fn room_for_rest_of(&mut self, item: &StoredItem) {
        let rest = match self.from {
            From::AtLeast(_) => item.parts - item.part - 1,
            From::AtMost(_) => item.part,
        };
        if let (Some(page), Ok(rest)) = (&mut self.page, i32::try_from(rest)) {
            *page = rest.max(*page);
        }
    }

    async fn fetch(&mut self) -> Result<(), Failure> {
        let connection = &self.connection;
        // A whole stream needs no bound, and forwards is the default. An absent parameter is
        // neither sent nor parsed.
        let (condition, bound, upwards) = match self.from {
            From::AtLeast(version) if version.get() <= 1 => ("pk = :pk", None, None),
            From::AtLeast(version) => ("pk = :pk AND sk >= :sk", Some(version), None),
            From::AtMost(Some(version)) => ("pk = :pk AND sk <= :sk", Some(version), Some(false)),
            From::AtMost(None) => ("pk = :pk", None, Some(false)),
        };
        let mut request = connection
            .once()
            .query()
            .table_name(connection.events())
            .key_condition_expression(condition)
            .expression_attribute_values(":pk", text(self.stream.as_str()))
            .consistent_read(true)
            .set_scan_index_forward(upwards)
            .set_limit(self.page)
            .set_exclusive_start_key(self.next.take());
        if let Some(bound) = bound {
            request = request.expression_attribute_values(":sk", number(bound));
        }
        let target = connection.at("Query", connection.events());
        let sent = connection.send(target, || request.clone().send());
        let answer = sent.await.map_err(|e| Failure::of(e, target))?;
        if self.grows {
            self.page = self
                .page
                .and_then(|page| page.checked_mul(GROWTH))
                .filter(|page| *page <= MOST_GROWN);
        }
        self.finished = answer.last_evaluated_key.is_none();
        self.next = answer.last_evaluated_key;
        self.buffer = answer.items.unwrap_or_default().into();
        Ok(())
    }
}
