//! The faults that a rule injects into calls.
use super::{Op, Ops, Rule};
use foldstream::{
    Version,
    ports::{NoPosition, RefusedKind},
};
use std::{any::Any, fmt, sync::Arc, time::Duration};

/// A fault that is injected into one call.
///
/// Durations are measured with tokio's clock, which a test may pause.
///
/// Real backends show all faults up to [`LoseSession`](Self::LoseSession). The port's contract
/// allows them, and a correct caller handles them. The last four [break the
/// contract](Self::breaks_the_contract) on purpose, to test how callers defend themselves against a
/// broken adapter. A rule neither counts nor changes a call to which its fault does not
/// [apply](Self::applies_to).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The call is not carried out, and the caller knows that: it gets `Unavailable`, for an append
    /// without `pending`.
    Unavailable,
    /// The call is not carried out: the caller gets `Throttled`.
    ///
    /// The value is the shortest pause before the next attempt; `None` states no pause. A message
    /// bus has no throttling and returns `Unavailable` instead.
    Throttled(Option<Duration>),
    /// The call is not carried out: the caller gets `Refused`, as if an operator had to change
    /// something first.
    Refused(RefusedKind),
    /// The call is not carried out and fails with an error of the test, see [`Fault::error`].
    Error(AnyError),
    /// The call is not carried out, but the caller cannot know that: it gets `Unavailable`, for an
    /// append with `pending`.
    LoseRequest,
    /// The call is carried out, but the caller cannot know that: it gets `Unavailable`, for an
    /// append with `pending`.
    ///
    /// A read breaks off after some commits. Errors of the inner port, such as `Invalid` or
    /// `TooLarge`, reach the caller.
    LoseReply,
    /// The caller gets `Unavailable` as with [`LoseRequest`](Self::LoseRequest), and the write is
    /// carried out after this time.
    ApplyLate(Duration),
    /// The call is not carried out and never returns.
    Hang,
    /// The call is carried out and never returns.
    HangAfter,
    /// The call is carried out after this time. A delay comes on top of another fault of the same
    /// call.
    Delay(Duration),
    /// The call is carried out twice in a row, and the caller gets the second answer.
    Duplicate,
    /// The process dies before the call is carried out, see
    /// [`Faults::restart`](super::Faults::restart).
    CrashBefore,
    /// The call is carried out, and the process dies before it gets the answer.
    CrashAfter,
    /// The process and all its calls stand still for this time, and then continue.
    Freeze(Duration),
    /// A list returns an empty page and a cursor to continue with, as backends do that filter or
    /// run out of time.
    EmptyPage,
    /// The lists `streams` and `unpublished` do not show this append, or this clearing, for this
    /// number of calls.
    ///
    /// Only calls that begin a list count, not those for its next pages. The lag ends at
    /// [`Faults::disable`](super::Faults::disable) at the latest. Lists through other wrappers do
    /// not lag.
    Lag(u32),
    /// Another writer rewrites the row just before a conditional write, see
    /// [`Faults::with_concurrent_writer`](super::Faults::with_concurrent_writer).
    ConcurrentWrite,
    /// The partition of the next delivery is held back for this time, while the consumer gets
    /// deliveries of other partitions.
    HoldBack(Duration),
    /// The call is not carried out because the brokers do not know the topic, as a broker that has
    /// just restarted.
    ///
    /// The errors are those of the Kafka adapter: `Unavailable` for 5 minutes if the topic has
    /// worked before, and `Refused(MissingTopic)` after that or if the topic has never worked. A
    /// process that [restarts](super::Faults::restart) has not used any topic yet.
    UnknownTopic,
    /// A run of messages is cut: it breaks off, and its caller gets `Unavailable`.
    ///
    /// A run of at most `reported` messages is sent whole. If `reported` is greater than
    /// `durable`, it counts as `durable`.
    CutRun {
        /// The number of messages that are published, from the first of the run. `usize::MAX`
        /// stands for all.
        durable: usize,
        /// The number of messages that the caller is told to be durable.
        reported: usize,
    },
    /// A partition has no position, for this reason.
    ///
    /// The consumer gets [`ConsumerEvent::NoPosition`](foldstream::ports::ConsumerEvent) for the
    /// first of its partitions, or else for the first that is assigned next, and no more deliveries
    /// of that partition. A commit for a [recreated](NoPosition::Recreated) topic is stale.
    NoPosition(NoPosition),
    /// The group expels the consumer.
    ///
    /// The consumer gets `Lost` for all its partitions and joins again as a new member. Messages
    /// that it has not committed are delivered again.
    LoseSession,
    /// **Breaks the contract**: a read omits a commit that is not the last one.
    Hole,
    /// **Breaks the contract**: a read omits the commit whose first event has this version.
    HoleAt(Version),
    /// **Breaks the contract**: a read returns a commit without its last event.
    TornCommit,
    /// **Breaks the contract**: this number of reads of the stream do not return the appended
    /// commit, or the last of several that are appended together.
    Hide(u32),
}

impl Fault {
    /// Creates a fault that fails the call with an error of the test.
    ///
    /// `make` is called once per fault and returns the error type of the port.
    ///
    /// # Panics
    /// The faulty call panics if the error has the type of another port.
    ///
    /// # Example
    /// ```
    /// use foldstream::ports::ControlStoreError;
    /// use foldstream_testkit::faults::{Fault, Op};
    /// let rule = Fault::error(|| ControlStoreError::Invalid { reason: "says the test".into() }).on(Op::Get);
    /// ```
    pub fn error<E: std::error::Error + Send + 'static>(
        make: impl Fn() -> E + Send + Sync + 'static,
    ) -> Self {
        Self::Error(AnyError {
            kind: std::any::type_name::<E>(),
            make: Arc::new(move || Box::new(make())),
        })
    }

    /// Returns a rule that injects this fault into all calls of these methods.
    ///
    /// The methods of [`Rule`] restrict it to some of the calls.
    #[must_use]
    pub fn on(self, ops: impl Into<Ops>) -> Rule {
        Rule::new(self).on(ops)
    }
    /// Returns a rule that injects this fault into all calls to which it applies.
    ///
    /// The methods of [`Rule`] restrict it to some of the calls.
    #[must_use]
    pub fn anywhere(self) -> Rule {
        Rule::new(self)
    }

    /// Returns true if the fault breaks the contract of the port.
    ///
    /// Such faults are only for tests of how callers defend themselves against a broken adapter.
    pub const fn breaks_the_contract(&self) -> bool {
        matches!(
            self,
            Self::Hole | Self::HoleAt(_) | Self::TornCommit | Self::Hide(_)
        )
    }

    /// Returns true if the fault makes sense for calls of a method.
    pub fn applies_to(&self, op: Op) -> bool {
        match self {
            Self::Unavailable
            | Self::Throttled(_)
            | Self::Refused(_)
            | Self::Error(_)
            | Self::Hang
            | Self::Delay(_)
            | Self::CrashBefore
            | Self::CrashAfter
            | Self::Freeze(_) => true,
            // An event that `next` has taken from the bus must reach the caller, so `next` neither
            // loses it nor hangs with it.
            Self::LoseRequest | Self::LoseReply | Self::HangAfter => op != Op::Next,
            Self::ApplyLate(_) => op.is_write() && !matches!(op, Op::Commit | Op::DeleteGroup),
            Self::Duplicate => op.is_write(),
            Self::EmptyPage => Op::LISTS.contains(&op),
            Self::Lag(_) => matches!(op, Op::Append | Op::AppendAll | Op::ClearUnpublished),
            Self::ConcurrentWrite => matches!(op, Op::Put | Op::Delete),
            Self::UnknownTopic => matches!(
                op,
                Op::Publish
                    | Op::PublishRun
                    | Op::Subscribe
                    | Op::Offsets
                    | Op::Committed
                    | Op::DescribeTopic
                    | Op::Next
                    | Op::Commit
            ),
            Self::CutRun { .. } => op == Op::PublishRun,
            Self::HoldBack(_) | Self::LoseSession | Self::NoPosition(_) => op == Op::Next,
            Self::Hole | Self::HoleAt(_) | Self::TornCommit => op == Op::Read,
            Self::Hide(_) => matches!(op, Op::Append | Op::AppendAll),
        }
    }

    /// Returns this fault with its duration changed, if it has a duration.
    pub(super) fn map_duration(self, change: impl FnOnce(Duration) -> Duration) -> Self {
        match self {
            Self::ApplyLate(d) => Self::ApplyLate(change(d)),
            Self::Delay(d) => Self::Delay(change(d)),
            Self::Freeze(d) => Self::Freeze(change(d)),
            Self::HoldBack(d) => Self::HoldBack(change(d)),
            other => other,
        }
    }
}

/// A source of errors of one type, made by [`Fault::error`].
#[derive(Clone)]
pub struct AnyError {
    kind: &'static str,
    make: Arc<dyn Fn() -> Box<dyn Any + Send> + Send + Sync>,
}
impl AnyError {
    /// Makes an error of the port's type, or panics if the test's error has another type.
    pub(super) fn make<E: 'static>(&self) -> E {
        match (self.make)().downcast() {
            Ok(error) => *error,
            Err(_) => panic!(
                "the fault makes a {}, and the port fails with a {}: name the port's methods in the rule",
                self.kind,
                std::any::type_name::<E>()
            ),
        }
    }
}
impl fmt::Debug for AnyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}
