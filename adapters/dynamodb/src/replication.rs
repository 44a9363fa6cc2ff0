//! Replicas in other regions: whether conditions hold, and whether there are transactions.
//!
//! Every rule of the stores rests on conditional writes. With asynchronous replication (multi-region eventual
//! consistency) a condition holds in its own region only, and of two regions that wrote the same slot the later one
//! silently wins: an acknowledged commit would be gone. So such tables are refused, unless the configuration says that
//! no other region writes. With strong consistency conditions hold everywhere, but there are no transactions: an append is
//! one `PutItem`.
//! (<https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/V2globaltables_HowItWorks.html>)
use crate::{ConfigError, DynamoDbError, client::Connection, tables::describe};
use aws_sdk_dynamodb::types::{MultiRegionConsistency, TableDescription};
use foldstream::ports::RefusedKind;
use std::str::FromStr;

/// The replication of the tables to other regions, as DynamoDB global tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Replication {
    /// `connect` asks DynamoDB, which takes the permission `dynamodb:DescribeTable` on the events and control tables: tables with
    /// asynchronous replicas are refused, and tables with strongly consistent ones are used without transactions.
    #[default]
    Detect,
    /// No replicas. Nothing is asked, and nothing is checked.
    None,
    /// The replicas are asynchronous, and no other region writes to them: they serve readers, or wait to take over. Nothing is
    /// asked. Before another region takes over, this one must have stopped writing, and what had not been replicated
    /// until then is lost, as after a restore from a backup.
    SingleWritingRegion,
    /// The replicas are strongly consistent. Nothing is asked. There are no transactions: an append touches one stream, and a
    /// commit is at most one item (see [`EventStore::capabilities`](foldstream::ports::EventStore::capabilities)). Such
    /// tables cannot expire rows either, so rows past their expiry stay until you delete them; they read as absent.
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

/// The events and control tables, where they were described.
pub(crate) type Described = Option<(TableDescription, TableDescription)>;

/// The connection with what its tables can do, and the tables as they were described on that occasion.
///
/// # Errors
/// `AsynchronousReplicas`, or why the tables cannot be described.
pub(crate) async fn resolve(
    connection: &Connection,
) -> Result<(Connection, Described), DynamoDbError> {
    match connection.config().replication {
        Replication::None | Replication::SingleWritingRegion => Ok((connection.clone(), None)),
        Replication::StronglyConsistent => Ok((connection.without_transactions(), None)),
        Replication::Detect => {
            // Snapshots only save time: of two regions' either will do.
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
        // Also a kind that a newer DynamoDB adds: nothing is known of its conditions.
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
