//! Replicas in other regions: the conditions that hold with them, and the support of transactions.
//!
//! Every rule of the stores rests on conditional writes. With asynchronous replication
//! (multi-region eventual consistency) a condition holds only in its own region. If two regions
//! write the same slot, the later write silently wins, and an acknowledged commit is lost. Such
//! tables are refused, unless the configuration says that no other region writes.
//!
//! With strong consistency, conditions hold everywhere, but there are no transactions, so an append
//! is a single `PutItem`.
//! (<https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/V2globaltables_HowItWorks.html>)
use crate::{ConfigError, DynamoDbError, client::Connection, tables::describe};
use aws_sdk_dynamodb::types::{MultiRegionConsistency, TableDescription};
use foldstream::ports::RefusedKind;
use std::str::FromStr;

/// The replication of the tables to other regions, as DynamoDB global tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Replication {
    /// `connect` asks DynamoDB. Tables with asynchronous replicas are refused, and tables with
    /// strongly consistent replicas are used without transactions.
    ///
    /// Needs the permission `dynamodb:DescribeTable` on the events and control tables.
    #[default]
    Detect,
    /// The tables have no replicas. `connect` does not ask DynamoDB about them.
    None,
    /// The replicas are asynchronous, and no other region writes to them: they serve readers or
    /// stand by for a failover. `connect` does not ask DynamoDB about them.
    ///
    /// Before another region takes over, this one must have stopped writing. Commits that had not
    /// been replicated by then are lost, as after a restore from a backup.
    SingleWritingRegion,
    /// The replicas are strongly consistent. `connect` does not ask DynamoDB about them.
    ///
    /// There are no transactions: an append touches one stream, and a commit is at most one item
    /// (see [`EventStore::capabilities`](foldstream::ports::EventStore::capabilities)). Rows of
    /// such tables cannot expire either. Rows past their expiry read as absent and remain until you
    /// delete them.
    StronglyConsistent,
}

impl FromStr for Replication {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Ok(match text {
            "detect" => Self::Detect,
            "none" => Self::None,
            "single-writing-region" => Self::SingleWritingRegion,
            "strongly-consistent" => Self::StronglyConsistent,
            _ => {
                return Err(ConfigError::Invalid {
                    setting: "DYNAMODB_REPLICATION (replication)",
                    found: text.into(),
                    expected: "detect, none, single-writing-region or strongly-consistent",
                });
            }
        })
    }
}

/// The events and control tables, if they were described.
pub(crate) type Described = Option<(TableDescription, TableDescription)>;

/// Returns the connection with the abilities of its tables, and the tables if they were described
/// for it.
///
/// # Errors
/// - `AsynchronousReplicas` if other regions may write to a table.
/// - Another error if a table cannot be described.
pub(crate) async fn resolve(
    connection: &Connection,
) -> Result<(Connection, Described), DynamoDbError> {
    match connection.config().replication {
        Replication::None | Replication::SingleWritingRegion => Ok((connection.clone(), None)),
        Replication::StronglyConsistent => Ok((connection.without_transactions(), None)),
        Replication::Detect => {
            // Snapshots only save time, so the later write of two regions may win.
            let ((events, at_events), (control, at_control)) = tokio::try_join!(
                detect(connection, connection.events()),
                detect(connection, connection.control())
            )?;
            let is_strong = at_events == Replicas::Strong || at_control == Replicas::Strong;
            let connection = match is_strong {
                true => connection.without_transactions(),
                false => connection.clone(),
            };
            Ok((connection, Some((events, control))))
        }
    }
}

/// Refuses a table that other regions may write to, as far as the configuration lets this process
/// ask.
///
/// # Errors
/// - `AsynchronousReplicas` if other regions may write to the table.
/// - Another error if the table cannot be described.
pub(crate) async fn check(connection: &Connection, table: &str) -> Result<(), DynamoDbError> {
    match connection.config().replication {
        Replication::Detect => detect(connection, table).await.map(|_| ()),
        Replication::None | Replication::SingleWritingRegion | Replication::StronglyConsistent => {
            Ok(())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Replicas {
    No,
    Strong,
}

async fn detect(
    connection: &Connection,
    table: &str,
) -> Result<(TableDescription, Replicas), DynamoDbError> {
    let described = match describe(connection, table).await {
        Ok(described) => described,
        Err(failure) => {
            return Err(match failure.into() {
                DynamoDbError::Refused {
                    kind: kind @ RefusedKind::Permission,
                    reason,
                    source,
                } => DynamoDbError::Refused {
                    kind,
                    reason: format!(
                        "{reason}; or say in DYNAMODB_REPLICATION (replication) how the tables are replicated, then nothing is asked"
                    ),
                    source,
                },
                error => error,
            });
        }
    };
    match (
        is_replicated(&described),
        described.multi_region_consistency(),
    ) {
        (false, _) => Ok((described, Replicas::No)),
        (true, Some(MultiRegionConsistency::Strong)) => Ok((described, Replicas::Strong)),
        // Also a kind of replication that a newer DynamoDB adds, whose conditions are unknown.
        (true, _) => Err(DynamoDbError::AsynchronousReplicas {
            table: table.into(),
            regions: regions(&described),
        }),
    }
}

fn is_replicated(table: &TableDescription) -> bool {
    !table.replicas().is_empty() || table.global_table_version().is_some()
}

fn regions(table: &TableDescription) -> Vec<String> {
    let names = table.replicas().iter().filter_map(|r| r.region_name());
    names.map(ToOwned::to_owned).collect()
}
