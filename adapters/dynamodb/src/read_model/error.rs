//! The error of a read model, and its class for the runner.
use crate::{DynamoDbError, error::Failure};
use foldstream::{
    BoxError,
    ports::{ControlStoreError, RefusedKind},
    runner::{ErrorClass, HandlerError, ModelId},
};

/// The error of a [`ReadModel`](super::ReadModel).
///
/// In a handler, `orders.get(..).await.classify(ReadModelError::class)?` gives it the right class.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadModelError {
    /// DynamoDB throttles, cannot be reached, or refuses the request.
    #[error("read model {model}: the request failed")]
    Request {
        /// The read model.
        model: ModelId,
        /// The failure, as a control store on DynamoDB would report it.
        #[source]
        source: ControlStoreError,
    },
    /// The table does not exist.
    #[error("read model {model} has no table {table}: call ReadModel::create_table")]
    NoTable {
        /// The read model.
        model: ModelId,
        /// The name of the table.
        table: String,
        /// The answer of DynamoDB.
        #[source]
        source: BoxError,
    },
    /// The table cannot be created or used.
    #[error("the table of read model {model} cannot be prepared{}", hint(source))]
    Prepare {
        /// The read model.
        model: ModelId,
        /// The reason.
        #[source]
        source: Box<DynamoDbError>,
    },
    /// The name of the rows, the key of a row or its place in the index is not allowed.
    #[error("read model {model}: {reason}")]
    Invalid {
        /// The read model.
        model: ModelId,
        /// A description of the rule that is broken.
        reason: String,
    },
    /// The row is larger than DynamoDB's limit of an item.
    #[error(
        "row {key} of read model {model} has {bytes} bytes, and an item of DynamoDB at most {limit}: keep less in a row, or \
         divide it into several"
    )]
    TooLarge {
        /// The read model.
        model: ModelId,
        /// The key of the row.
        key: String,
        /// The size of the row with its key and positions, as DynamoDB counts it.
        bytes: usize,
        /// The limit of that size.
        limit: usize,
    },
    /// More streams feed the row than one row can hold positions of.
    #[error(
        "more than {limit} streams feed row {key} of read model {model}: keep a row per stream, and add them up in a query"
    )]
    TooManyStreams {
        /// The read model.
        model: ModelId,
        /// The key of the row.
        key: String,
        /// The limit of the number of streams.
        limit: usize,
    },
    /// The row cannot be stored: it cannot be encoded, or could not be read again.
    #[error("row {key} of read model {model} cannot be stored")]
    Encode {
        /// The read model.
        model: ModelId,
        /// The key of the row.
        key: String,
        /// The error of the serializer, or of the deserializer on what was encoded.
        #[source]
        source: BoxError,
    },
    /// The stored row cannot be read.
    #[error(
        "row {key} of read model {model} cannot be read ({reason}): raise MODEL when the shape of a row changes, and build \
         the model again"
    )]
    Corrupt {
        /// The read model.
        model: ModelId,
        /// The key of the row.
        key: String,
        /// A description of what was found.
        reason: String,
    },
    /// The stored row was deleted or set back while this process held events for it: the model was
    /// reset, or its table was replaced.
    ///
    /// The events before these are missing in the model, so a write would leave out events.
    #[error(
        "row {key} of read model {model} was removed or set back while this process held events for it: the model was reset \
         or restored; restart the process, which begins at the stored positions"
    )]
    SetBack {
        /// The read model.
        model: ModelId,
        /// The key of the row.
        key: String,
    },
    /// Other processes changed the row between each read and write of this one.
    #[error(
        "row {key} of read model {model} was changed by other processes {attempts} times in a row"
    )]
    Contended {
        /// The read model.
        model: ModelId,
        /// The key of the row.
        key: String,
        /// The number of attempts.
        attempts: u32,
    },
}

/// Returns the remedy if a permission is missing.
fn hint(error: &DynamoDbError) -> &'static str {
    match error {
        DynamoDbError::Refused {
            kind: RefusedKind::Permission,
            ..
        } => {
            ": allow dynamodb:DescribeTable, and dynamodb:CreateTable if the table does not exist, or create it in a deployment \
             step by ReadModel::create_table"
        }
        _ => "",
    }
}

impl ReadModelError {
    /// Returns the class that tells the runner what to do: wait, try again, give up the event, or
    /// halt the processor.
    ///
    /// A refusal is `Fatal`, since every other event would fail too: a table or a permission is
    /// missing.
    pub fn class(&self) -> ErrorClass {
        let throttled = |retry_after: &Option<_>| match *retry_after {
            Some(retry_after) => ErrorClass::Throttled { retry_after },
            None => ErrorClass::Transient,
        };
        match self {
            Self::Request { source, .. } => match source {
                ControlStoreError::Throttled { retry_after, .. } => throttled(retry_after),
                source if source.is_transient() => ErrorClass::Transient,
                _ => ErrorClass::Fatal,
            },
            Self::Prepare { source, .. } => match &**source {
                DynamoDbError::Throttled { retry_after, .. } => throttled(retry_after),
                source if source.is_transient() => ErrorClass::Transient,
                _ => ErrorClass::Fatal,
            },
            Self::Contended { .. } => ErrorClass::Transient,
            Self::NoTable { .. } | Self::SetBack { .. } => ErrorClass::Fatal,
            Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::TooManyStreams { .. }
            | Self::Encode { .. }
            | Self::Corrupt { .. } => ErrorClass::Permanent,
        }
    }

    pub(super) fn of(failure: Failure, model: &ModelId, table: &str) -> Self {
        let model = model.clone();
        if !failure.is_missing_table() {
            let source = failure.into_control_store();
            return Self::Request { model, source };
        }
        Self::NoTable {
            model,
            table: table.into(),
            source: failure.into_source(),
        }
    }
}

/// Classifies an error for the runner. The conversion of `?` knows only errors of the core.
pub(super) fn classified(error: ReadModelError) -> HandlerError {
    HandlerError::new(error.class(), error)
}
