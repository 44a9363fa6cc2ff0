//! A store that a careful user would write by hand with the SDK.
//!
//! It has an item per event. A command is a consistent query of the stream, a decision and one
//! conditional put. The store comes in two forms, and every ratio names the one it refers to.
//! *Lean* items have only the attributes that a fold needs. *Same facts* items have all facts that
//! our events have, also the schema version, the id and the time of recording.
use crate::{BenchError, account::Deposit};
use aws_sdk_dynamodb::{
    Client,
    types::{
        AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, PutRequest,
        ScalarAttributeType, WriteRequest,
    },
};
use foldstream::{Clock, IdSource, SystemClock, SystemIds};
use std::collections::HashMap;

/// The attributes of the items that are written by hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// The attributes `pk`, `sk`, `type` and `payload`.
    Lean,
    /// The lean attributes, and `schema_version`, `event_id` and `time`.
    SameFacts,
}

impl Form {
    const fn table(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::SameFacts => "same-facts",
        }
    }

    fn item(
        self,
        id: &str,
        version: u64,
        deposit: &Deposit,
    ) -> Result<HashMap<String, AttributeValue>, BenchError> {
        let text = AttributeValue::S;
        let number = |n: u64| AttributeValue::N(n.to_string());
        let mut item = HashMap::from([
            ("pk".into(), text(key(id))),
            ("sk".into(), number(version)),
            ("type".into(), text("Deposited".into())),
            ("payload".into(), text(serde_json::to_string(deposit)?)),
        ]);
        if self == Self::SameFacts {
            let time = u64::try_from(SystemClock.now().as_micros()).unwrap_or_default();
            item.insert("schema_version".into(), number(1));
            item.insert("event_id".into(), text(SystemIds.commit_id().to_string()));
            item.insert("time".into(), number(time));
        }
        Ok(item)
    }
}

#[derive(Clone)]
pub(super) struct Raw {
    client: Client,
    form: Form,
}

/// The state of the account, as folded by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct State {
    pub(super) balance: u64,
    pub(super) version: u64,
}

impl Raw {
    pub(super) const fn new(client: Client, form: Form) -> Self {
        Self { client, form }
    }

    pub(super) async fn create_table(&self) -> Result<(), BenchError> {
        let mut table = self
            .client
            .create_table()
            .table_name(self.form.table())
            .billing_mode(BillingMode::PayPerRequest);
        for (name, kind, key) in [
            ("pk", ScalarAttributeType::S, KeyType::Hash),
            ("sk", ScalarAttributeType::N, KeyType::Range),
        ] {
            let attribute = AttributeDefinition::builder()
                .attribute_name(name)
                .attribute_type(kind);
            let key = KeySchemaElement::builder()
                .attribute_name(name)
                .key_type(key);
            table = table
                .attribute_definitions(attribute.build().map_err(BenchError::other)?)
                .key_schema(key.build().map_err(BenchError::other)?);
        }
        table.send().await.map_err(BenchError::other)?;
        Ok(())
    }

    /// Queries the stream, decides and puts the event.
    pub(super) async fn execute(&self, id: &str, deposit: &Deposit) -> Result<State, BenchError> {
        let mut state = self.load(id).await?;
        self.put(id, state.version + 1, deposit).await?;
        state.version += 1;
        state.balance += deposit.amount;
        Ok(state)
    }

    /// Makes one conditional put.
    pub(super) async fn put(
        &self,
        id: &str,
        version: u64,
        deposit: &Deposit,
    ) -> Result<(), BenchError> {
        self.client
            .put_item()
            .table_name(self.form.table())
            .set_item(Some(self.form.item(id, version, deposit)?))
            .condition_expression("attribute_not_exists(pk)")
            .send()
            .await
            .map_err(BenchError::other)?;
        Ok(())
    }

    /// Loads the whole stream page by page with consistent reads.
    pub(super) async fn load(&self, id: &str) -> Result<State, BenchError> {
        let mut state = State::default();
        let mut start = None;
        loop {
            let page = self
                .client
                .query()
                .table_name(self.form.table())
                .key_condition_expression("pk = :pk")
                .expression_attribute_values(":pk", AttributeValue::S(key(id)))
                .consistent_read(true)
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(BenchError::other)?;
            for item in page.items() {
                let payload = item.get("payload").and_then(|p| p.as_s().ok());
                let payload = payload.ok_or_else(|| BenchError::other("an item has no payload"))?;
                let deposit: Deposit = serde_json::from_str(payload)?;
                state.balance += deposit.amount;
                state.version += 1;
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(state);
            }
        }
    }

    /// Fills a stream in batches, outside of the measurement.
    pub(super) async fn fill(&self, id: &str, events: u64) -> Result<(), BenchError> {
        let all: Vec<u64> = (1..=events).collect();
        for batch in all.chunks(25) {
            let mut writes = Vec::new();
            for &n in batch {
                let item = self.form.item(id, n, &Deposit::number(n))?;
                let put = PutRequest::builder().set_item(Some(item));
                let put = put.build().map_err(BenchError::other)?;
                writes.push(WriteRequest::builder().put_request(put).build());
            }
            let written = self
                .client
                .batch_write_item()
                .request_items(self.form.table(), writes)
                .send()
                .await
                .map_err(BenchError::other)?;
            if written.unprocessed_items.is_some_and(|u| !u.is_empty()) {
                return Err(BenchError::other("the emulator left items unprocessed"));
            }
        }
        Ok(())
    }
}

fn key(id: &str) -> String {
    format!("account#{id}")
}
