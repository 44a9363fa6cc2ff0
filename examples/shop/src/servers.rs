//! Turns the servers of the command line into adapters, in a build that has those adapters.
use crate::Servers;
use foldstream::{BoxError, operate::Operator};
use shop::{
    backend::{Backend, Uses},
    read_model::SalesModel,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "production")]
mod adapters {
    use super::{Arc, Backend, BoxError, CancellationToken, Operator, SalesModel, Servers, Uses};
    use shop::production::{self, ConnectError};

    pub(crate) async fn connect(servers: Servers, uses: Uses) -> Result<Backend, BoxError> {
        production(servers).connect(uses).await.map_err(with_hint)
    }

    /// Publishes what the change stream reports until `shutdown` is cancelled, and returns the
    /// number of records sent and the topic.
    pub(crate) async fn read_change_stream(
        servers: Servers,
        shutdown: &CancellationToken,
    ) -> Result<(u64, Arc<str>), BoxError> {
        let (reader, backend) = production(servers).reader().await.map_err(with_hint)?;
        let report = reader.run(shutdown.cancelled()).await?;
        Ok((report.messages, backend.topic))
    }

    pub(crate) async fn rows(servers: Servers) -> Result<(SalesModel, Operator), BoxError> {
        let rows = production(servers).rows().await.map_err(with_hint)?;
        let operator = Operator::new(rows.control());
        Ok((SalesModel::DynamoDb(rows), operator))
    }

    fn production(Servers { dynamodb, kafka }: Servers) -> production::Servers {
        production::Servers { dynamodb, kafka }
    }

    fn with_hint(error: ConnectError) -> BoxError {
        if error.is_unavailable() {
            eprintln!("Are the servers running? `docker compose up` starts both.");
            eprintln!(
                "Where they are: --dynamodb URL or DYNAMODB_URL, --kafka BROKERS or KAFKA_BROKERS."
            );
        }
        error.into()
    }
}

#[cfg(not(feature = "production"))]
mod adapters {
    use super::{Arc, Backend, BoxError, CancellationToken, Operator, SalesModel, Servers, Uses};

    const NONE: &str =
        "this build has no adapters for DynamoDB and Kafka: build it with --features production";

    pub(crate) async fn connect(_: Servers, _: Uses) -> Result<Backend, BoxError> {
        Err(NONE.into())
    }

    pub(crate) async fn read_change_stream(
        _: Servers,
        _: &CancellationToken,
    ) -> Result<(u64, Arc<str>), BoxError> {
        Err(NONE.into())
    }

    pub(crate) async fn rows(_: Servers) -> Result<(SalesModel, Operator), BoxError> {
        Err(NONE.into())
    }
}

pub(crate) use adapters::{connect, read_change_stream, rows};
