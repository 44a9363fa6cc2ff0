//! The change stream of a table, as a Lambda function gets it: the JSON of the streams API.
use crate::BenchError;
use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// A reader of the first shard of a change stream. The emulator has one.
pub(super) struct Changes {
    http: Client<HttpConnector, Full<Bytes>>,
    endpoint: String,
    iterator: Value,
}

impl Changes {
    pub(super) async fn open(endpoint: &str, table: &str) -> Result<Self, BenchError> {
        let mut changes = Self {
            http: Client::builder(TokioExecutor::new()).build_http(),
            endpoint: endpoint.into(),
            iterator: Value::Null,
        };
        let streams = json!({"TableName": table});
        let streams = changes.call("ListStreams", &streams).await?;
        let arn = &streams["Streams"][0]["StreamArn"];
        let stream = json!({"StreamArn": arn});
        let stream = changes.call("DescribeStream", &stream).await?;
        let shard = &stream["StreamDescription"]["Shards"][0]["ShardId"];
        let start =
            json!({"StreamArn": arn, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"});
        let start = changes.call("GetShardIterator", &start).await?;
        changes.iterator = start["ShardIterator"].clone();
        Ok(changes)
    }

    /// Returns the records of insertions since the last call.
    pub(super) async fn next(&mut self) -> Result<Vec<Value>, BenchError> {
        let mut all = Vec::new();
        loop {
            let page = json!({"ShardIterator": self.iterator});
            let mut page = self.call("GetRecords", &page).await?;
            self.iterator = page["NextShardIterator"].take();
            let Value::Array(records) = page["Records"].take() else {
                return Err(BenchError::other("an answer without records"));
            };
            if records.is_empty() {
                return Ok(all);
            }
            let is_insertion = |record: &Value| record["eventName"] == "INSERT";
            all.extend(records.into_iter().filter(is_insertion));
        }
    }

    async fn call(&self, operation: &str, body: &Value) -> Result<Value, BenchError> {
        let request = axum::http::Request::post(&self.endpoint)
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-target", format!("DynamoDBStreams_20120810.{operation}"))
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0",
            )
            .header("x-amz-date", "20260101T000000Z")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(BenchError::other)?;
        let answer = self
            .http
            .request(request)
            .await
            .map_err(BenchError::other)?;
        let is_ok = answer.status().is_success();
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(BenchError::other)?;
        let body = body.to_bytes();
        if is_ok {
            return Ok(serde_json::from_slice(&body)?);
        }
        let text = String::from_utf8_lossy(&body);
        Err(BenchError::other(format!("{operation}: {text}")))
    }
}
