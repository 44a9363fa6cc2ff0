//! Items of one stream, read without gaps.
//!
//! A query is only read-committed against transactions: a page may miss an item that the next page implies. Rows never
//! change, so a gap is read again from the missing key, some times with backoff; then a `GetItem` of that key, which is
//! serializable, decides. A gap that stays is `Corrupt`, never a shorter history. Streams are read from the table
//! alone: an index would be stale.
use super::{
    decode::{self, StoredItem, Unreadable},
    encode,
    events::Names,
};
use crate::{
    attributes::{Attributes, number, text},
    client::Connection,
    error::Failure,
};
use foldstream::{
    Backoff, RetryPolicy, StreamId, Version,
    ports::{Commit, EventStoreError},
    resilience::{Attempts, FailureClass},
};
use std::{collections::VecDeque, time::Duration};

/// The retries of the read of a gap, before the missing key itself is asked for.
const REREADS: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(10), Duration::from_millis(200)),
    Duration::from_millis(300),
);

/// Items of the first page of a reader who may stop anywhere, how much more the next one has, and from where on pages have
/// no limit but DynamoDB's megabyte.
const FIRST_GROWING: i32 = 16;
const GROWTH: i32 = 4;
const MOST_GROWN: i32 = 1024;

/// The item in this very slot, strongly consistent. `after`: the last version that was read whole, for errors.
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
    let place = connection.at("GetItem", connection.events());
    match connection.send(place, || request.clone().send()).await {
        Ok(answer) => Ok(answer.item),
        Err(e) => Err(Failure::of(e, place)),
    }
}

/// The direction of a query, and its first version.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// Upwards.
    AtLeast(Version),
    /// Downwards; `None` is the tail.
    AtMost(Option<Version>),
}

/// The items that a consistent query returns, a page at a time, until there is no `LastEvaluatedKey`.
#[derive(Debug)]
pub(super) struct Query {
    connection: Connection,
    stream: StreamId,
    from: From,
    /// Items a page; `None`: as many as fit.
    page: Option<i32>,
    /// True if each page is larger than the one before, until there is no limit.
    grows: bool,
    /// An item that was looked at and given back. It comes before those in the buffer.
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

    /// Pages that grow: for a reader who may stop anywhere, and pays by what is read, whether it looks at it or not.
    pub(super) const fn growing(mut self) -> Self {
        self.grows = true;
        self.page = Some(FIRST_GROWING);
        self
    }

    /// The next item. `after`: the last version that was read whole, for errors.
    pub(super) async fn next(
        &mut self,
        after: Version,
    ) -> Result<Option<StoredItem>, EventStoreError> {
        // A page may be empty, or shorter than asked for, and still not be the last.
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

    /// The next item of the pages that were fetched.
    fn buffered(&mut self) -> Option<Result<StoredItem, Unreadable>> {
        let seen = self.seen.take();
        seen.or_else(|| self.buffer.pop_front().map(StoredItem::read))
    }

    /// The next item of the pages that were fetched, if it is what the caller wants. Any other item, and what cannot be
    /// read, stays for [`next`](Self::next).
    fn next_buffered_if(&mut self, wanted: impl FnOnce(&StoredItem) -> bool) -> Option<StoredItem> {
        match self.buffered()? {
            Ok(item) if wanted(&item) => Some(item),
            other => {
                self.seen = Some(other);
                None
            }
        }
    }

    /// A limit counts commits, pages count items: the other parts of a split commit shall come in one page.
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
        // A whole stream has no bound, and upwards is what a query does: what is not said is not sent and not parsed.
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
        let place = connection.at("Query", connection.events());
        let sent = connection.send(place, || request.clone().send());
        let answer = sent.await.map_err(|e| Failure::of(e, place))?;
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

/// Items in order, each where the last one ended.
#[derive(Debug)]
pub(super) struct Items {
    connection: Connection,
    stream: StreamId,
    query: Query,
    expected: Version,
    /// The last version that was read whole, for errors.
    whole: Version,
}

impl Items {
    /// From the item that starts at `first`.
    pub(super) fn new(
        connection: Connection,
        stream: StreamId,
        first: Version,
        page: Option<i32>,
    ) -> Self {
        let from = From::AtLeast(first);
        Self {
            query: Query::new(connection.clone(), stream.clone(), from, page),
            connection,
            stream,
            expected: first,
            whole: Version::new(first.get().saturating_sub(1)),
        }
    }

    /// Returns the version at which the next item must start.
    pub(super) const fn expected(&self) -> Version {
        self.expected
    }

    /// The next item, `None` at the tail.
    pub(super) async fn next(&mut self) -> Result<Option<StoredItem>, EventStoreError> {
        match self.query.next(self.whole).await? {
            None => Ok(None),
            Some(item) if item.first == self.expected => Ok(Some(self.accept(item))),
            Some(item) if item.first < self.expected => Err(self.corrupt(format!(
                "an item at {} overlaps the one before it",
                item.first
            ))),
            Some(_) => self.find_missing().await.map(Some),
        }
    }

    /// The next item, which other items say must be there.
    pub(super) async fn require(&mut self) -> Result<StoredItem, EventStoreError> {
        match self.next().await? {
            Some(item) => Ok(item),
            None => self.find_missing().await,
        }
    }

    /// The next commit, if it is one item of a page that was fetched and follows the item before it. Most items of a long
    /// stream are. Whatever else comes next is left for [`next`](Self::next).
    ///
    /// Why not only `next`? A future with all that a query needs has several kilobytes, which would be moved for each
    /// commit.
    pub(super) fn next_whole(
        &mut self,
        names: &mut Names,
    ) -> Option<Result<Commit, EventStoreError>> {
        let expected = self.expected;
        let is_next = |item: &StoredItem| item.first == expected && item.parts == 1;
        let item = self.query.next_buffered_if(is_next)?;
        let item = self.accept(item);
        Some(self.join(item, Vec::new(), names))
    }

    /// The whole commit that starts with `first`, the item read last.
    pub(super) async fn complete(
        &mut self,
        first: StoredItem,
        names: &mut Names,
    ) -> Result<Commit, EventStoreError> {
        let mut others = Vec::new();
        for _ in 1..first.parts {
            others.push(self.require().await?);
        }
        self.join(first, others, names)
    }

    fn join(
        &mut self,
        first: StoredItem,
        others: Vec<StoredItem>,
        names: &mut Names,
    ) -> Result<Commit, EventStoreError> {
        let commit = decode::join(&self.stream, first, others, names)
            .map_err(|e| e.into_error(&self.stream, self.whole))?;
        self.whole = commit.last_version();
        Ok(commit)
    }

    fn accept(&mut self, item: StoredItem) -> StoredItem {
        self.expected = item.last.next();
        item
    }

    async fn find_missing(&mut self) -> Result<StoredItem, EventStoreError> {
        let missing = self.expected;
        let mut attempts = Attempts::new(REREADS);
        while attempts.wait(FailureClass::Transient).await {
            self.restart_at(missing);
            if let Some(item) = self.query.next(self.whole).await?
                && item.first == missing
            {
                return Ok(self.accept(item));
            }
        }
        match get_item(&self.connection, &self.stream, missing, self.whole).await? {
            Some(item) => {
                self.restart_at(item.last.next());
                Ok(self.accept(item))
            }
            None => Err(self.corrupt(format!("the item at {missing} is missing"))),
        }
    }

    fn restart_at(&mut self, first: Version) {
        let (connection, stream) = (self.connection.clone(), self.stream.clone());
        self.query = Query::new(connection, stream, From::AtLeast(first), self.query.page);
    }

    fn corrupt(&self, reason: String) -> EventStoreError {
        Unreadable::Bad { reason }.into_error(&self.stream, self.whole)
    }
}
