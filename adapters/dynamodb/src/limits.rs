//! Limits of DynamoDB, and the limits that this adapter derives from them.
//!
//! DynamoDB's own numbers are in
//! <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html>.

/// The largest event that an append accepts, in bytes as
/// [`EventData::bytes`](foldstream::ports::EventData::bytes) counts them.
///
/// An event of this size makes an item below [`HARD_ITEM_BYTES`], even with its key, the most
/// metadata and what the format adds.
pub(crate) const MAX_EVENT_BYTES: usize = 390 * 1024;
/// The largest commit that an append accepts, in bytes as
/// [`Append::bytes`](foldstream::ports::Append::bytes) counts them.
///
/// A commit of this size is below [`MAX_TRANSACTION_BYTES`], even with what the format adds to each
/// of its parts.
pub(crate) const MAX_COMMIT_BYTES: usize = 3_900 * 1024;
/// The size up to which the encoder fills an item, in bytes as DynamoDB counts them.
///
/// The rest of the item is room for the attributes of later formats.
pub(crate) const MAX_ITEM_BYTES: usize = 390 * 1024;
/// DynamoDB's limit of an item: 400 KB. Only an item that holds a single event comes close to it.
pub(crate) const HARD_ITEM_BYTES: usize = 400 * 1024;
/// The most bytes that one transaction sends, as DynamoDB counts them.
///
/// DynamoDB's limit is 4 MB of items. Its documentation does not say whether a megabyte has 1,000
/// or 1,024 kilobytes, so this is the smaller of the two.
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html>)
pub(crate) const MAX_TRANSACTION_BYTES: usize = 4_000_000;
/// The most items that one transaction writes or checks (a limit of DynamoDB).
pub(crate) const MAX_TRANSACTION_ITEMS: usize = 100;
/// The most streams that one append writes or checks: each takes an item of the transaction.
pub(crate) const MAX_STREAMS: u32 = MAX_TRANSACTION_ITEMS as u32;
/// The longest attribute name in bytes, also within a map (a limit of DynamoDB).
pub(crate) const MAX_NAME_BYTES: usize = 65_535;
/// The longest sort key in bytes (a limit of DynamoDB).
pub(crate) const MAX_SORT_KEY_BYTES: usize = 1024;
/// The most keys of one `BatchGetItem` (a limit of DynamoDB).
pub(crate) const MAX_BATCH_KEYS: usize = 100;
