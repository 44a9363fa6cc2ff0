//! The connections of a bus, which a function gives up before and after it is frozen.
use async_trait::async_trait;
use foldstream_kafka::KafkaMessageBus;
use std::fmt;

/// The connections of the publisher's message bus. Lambda freezes a function between two
/// invocations, and connections and records in flight do not survive that.
///
/// # Example
/// ```
/// use async_trait::async_trait;
/// use foldstream_lambda::Connections;
///
/// /// A bus within the process, which has nothing to reconnect.
/// #[derive(Debug)]
/// struct Local;
///
/// #[async_trait]
/// impl Connections for Local {
///     fn unacknowledged(&self) -> usize {
///         0
///     }
///     async fn reconnect(&self) {}
/// }
/// assert_eq!(Local.unacknowledged(), 0);
/// ```
#[async_trait]
pub trait Connections: fmt::Debug + Send + Sync + 'static {
    /// Returns the number of records that were sent and are not acknowledged, those of dropped
    /// calls included. A record may count for some milliseconds after its call has returned.
    fn unacknowledged(&self) -> usize;

    /// Gives up such records and closes all connections. Once the future is ready, nothing is in
    /// flight any more. The next call of the bus connects again.
    async fn reconnect(&self);
}

#[async_trait]
impl Connections for KafkaMessageBus {
    fn unacknowledged(&self) -> usize {
        Self::unacknowledged(self)
    }
    async fn reconnect(&self) {
        let _ = Self::reconnect(self).await;
    }
}
