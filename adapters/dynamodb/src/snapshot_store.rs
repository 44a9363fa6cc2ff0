//! The `SnapshotStore` port on the snapshots table.
//!
//! ```text
//! pk S  "<type>#<id>"
//! v  N  version of the state
//! c  B  id of the commit that ends at this version (16 bytes)
//! s  N  version of the state's form (`Aggregate::STATE_VERSION`)
//! d  B  payload
//! k  S  tag of the codec that wrote the payload (absent: JSON)
//! ```
//! The test `a_snapshot_is_one_item` in `tests/it/stored_form.rs` fixes this form. Of two
//! processes that save at the same time, the condition in `save` decides which snapshot stays.
use crate::{
    DynamoDb, DynamoDbConfig, DynamoDbError,
    attributes::{
        Attributes, BadAttribute, binary, number, required, take_binary, take_number, take_text,
        text,
    },
    client::Connection,
    error::Failure,
    limits::MAX_ITEM_BYTES,
};
use async_trait::async_trait;
use foldstream::{
    CommitId, StreamId, Version,
    ports::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};

/// The snapshot store on DynamoDB: one item per stream, whose version only grows.
///
/// Loads are *eventually consistent*, at half the price. An older snapshot, or none, only means
/// more events to fold. The loader ignores a snapshot that does not fit the history. Cloning is a
/// reference count.
#[derive(Clone, Debug)]
pub struct DynamoDbSnapshotStore {
    connection: Connection,
}

impl DynamoDbSnapshotStore {
    /// Connects and checks that this process may use the tables.
    ///
    /// [`DynamoDb`] provides all stores over one connection, and accepts the caller's own client.
    ///
    /// # Errors
    /// The same as [`DynamoDb::connect`].
    pub async fn connect(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        Ok(DynamoDb::connect(config).await?.snapshot_store())
    }

    pub(crate) const fn over(connection: Connection) -> Self {
        Self { connection }
    }
}

fn key(stream: &StreamId) -> Attributes {
    Attributes::from([("pk".into(), text(stream.as_str()))])
}

fn encode(snapshot: &StoredSnapshot) -> Result<Attributes, SnapshotStoreError> {
    let mut item = key(&snapshot.stream);
    item.insert("v".into(), number(snapshot.version));
    item.insert(
        "c".into(),
        binary(snapshot.commit_id.as_u128().to_be_bytes()),
    );
    item.insert("s".into(), number(snapshot.state_version));
    item.insert("d".into(), binary(snapshot.payload.to_vec()));
    if let Some(codec) = &snapshot.codec {
        item.insert("k".into(), text(&**codec));
    }
    match snapshot.bytes() {
        0..=MAX_ITEM_BYTES => Ok(item),
        bytes => Err(SnapshotStoreError::TooLarge {
            stream: snapshot.stream.clone(),
            bytes,
            limit: MAX_ITEM_BYTES,
        }),
    }
}

fn decode(stream: &StreamId, mut item: Attributes) -> Result<StoredSnapshot, BadAttribute> {
    let version = required(take_number(&mut item, "v")?, "v")?;
    let commit_id = required(take_binary(&mut item, "c")?, "c")?;
    let commit_id = <[u8; 16]>::try_from(commit_id)
        .map_err(|bytes| BadAttribute::new("c", &format!("{} bytes instead of 16", bytes.len())))?;
    let commit_id = CommitId::from_u128(u128::from_be_bytes(commit_id));
    let state_version = required(take_number(&mut item, "s")?, "s")?;
    let payload = required(take_binary(&mut item, "d")?, "d")?;
    let codec = take_text(&mut item, "k")?.map(Into::into);
    let (stream, version) = (stream.clone(), Version::new(version));
    let snapshot = StoredSnapshot::new(stream, version, commit_id, state_version, payload.into());
    Ok(snapshot.with_codec(codec))
}

#[async_trait]
impl SnapshotStore for DynamoDbSnapshotStore {
    async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        let table = self.connection.snapshots();
        let target = self.connection.at("GetItem", table);
        let request = self.connection.once().get_item().table_name(table);
        let request = request.set_key(Some(key(stream)));
        let answer = self
            .connection
            .send(target, || request.clone().send())
            .await
            .map_err(|e| Failure::of(e, target).into_snapshot_store())?;
        let Some(item) = answer.item else {
            return Ok(None);
        };
        decode(stream, item).map(Some).map_err(|e| {
            let reason = format!(
                "the snapshot of {stream} in table {table} cannot be read ({e}): delete it"
            );
            Failure::incompatible(target, reason).into_snapshot_store()
        })
    }

    async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        let table = self.connection.snapshots();
        let request = self
            .connection
            .once()
            .put_item()
            .table_name(table)
            .set_item(Some(encode(snapshot)?))
            .condition_expression("attribute_not_exists(pk) OR v < :v OR (v = :v AND s < :s)")
            .expression_attribute_values(":v", number(snapshot.version))
            .expression_attribute_values(":s", number(snapshot.state_version));
        let target = self.connection.at("PutItem", table);
        match self
            .connection
            .send(target, || request.clone().send())
            .await
        {
            Ok(_) => Ok(SaveOutcome::Saved),
            // The condition also fails if an earlier attempt was applied and its answer lost. The
            // snapshot is stored then, which is all that matters here.
            Err(e)
                if e.as_service_error()
                    .is_some_and(|e| e.is_conditional_check_failed_exception()) =>
            {
                Ok(SaveOutcome::Stale)
            }
            Err(e) => Err(Failure::of(e, target).into_snapshot_store()),
        }
    }

    async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        let table = self.connection.snapshots();
        let target = self.connection.at("DeleteItem", table);
        let request = self.connection.once().delete_item().table_name(table);
        let request = request.set_key(Some(key(stream)));
        self.connection
            .send(target, || request.clone().send())
            .await
            .map_err(|e| Failure::of(e, target).into_snapshot_store())?;
        Ok(())
    }
}
