//! What goes wrong with a call.
use super::{Op, Ops, Rule};
use foldstream::{
    Version,
    ports::{NoPosition, RefusedKind},
};
use std::{any::Any, fmt, sync::Arc, time::Duration};

/// The fault of one call. Durations are of tokio's clock, which a test may pause.
///
/// Everything up to [`LoseSession`](Self::LoseSession) is what a real backend does: the port's contract allows it, and
/// a sound caller bears it. The last four [break the contract](Self::breaks_the_contract) on purpose, to test the
/// defence of callers against a broken adapter. On a call where a fault makes no sense
/// ([`applies_to`](Self::applies_to)) a rule does not count and does nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Not done, and the caller is told that it certainly was not: `Unavailable`, for an append without `pending`.
    Unavailable,
    /// Not done: `Throttled` with this least pause; on the bus, which knows no throttling, `Unavailable`.
    Throttled(Option<Duration>),
    /// Not done, until somebody changes something: `Refused`.
    Refused(RefusedKind),
    /// Not done; fails with an error of your own: see [`Fault::error`].
    Error(AnyError),
    /// Not done, but the caller cannot know: `Unavailable`, for an append with `pending`.
    LoseRequest,
    /// Done, but the caller does not hear of it: `Unavailable`, for an append with `pending`. A read breaks off after
    /// some commits. The client's own refusals (`Invalid`, `TooLarge`) are not lost.
    LoseReply,
    /// The caller is told `Unavailable` as with [`LoseRequest`](Self::LoseRequest), and the write arrives after this time.
    ApplyLate(Duration),
    /// Not done, and no answer comes, ever.
    Hang,
    /// Done, and no answer comes, ever.
    HangAfter,
    /// Done and answered after this time. Comes on top of another fault of the same call.
    Delay(Duration),
    /// Sent twice, one right after the other; the caller gets the second answer.
    Duplicate,
    /// The process dies before the call is sent: see [`Faults::restart`](super::Faults::restart).
    CrashBefore,
    /// The call is done, and the process dies before it hears of it.
    CrashAfter,
    /// The whole process stands still for this time, all its calls, and then goes on as if nothing had been.
    Freeze(Duration),
    /// A list answers an empty page and a place to go on, as backends do that filter or run out of time.
    EmptyPage,
    /// The lists `streams` and `unpublished` do not know of this append, or of this clearing, for so many calls from
    /// their beginning; until [`Faults::disable`](super::Faults::disable) at the latest. Through other wrappers they may.
    Lag(u32),
    /// Just before a conditional write somebody else rewrites the row: see
    /// [`Faults::with_concurrent_writer`](super::Faults::with_concurrent_writer).
    ConcurrentWrite,
    /// The partition of the next delivery is held back for this time, while others overtake it.
    HoldBack(Duration),
    /// Not done, since the brokers do not know the topic at present, as a broker that has just restarted. As the Kafka
    /// adapter tells it: `Unavailable` for 5 min where the topic has worked before, and then, or where it has never worked,
    /// `Refused(MissingTopic)`. A process that [restarts](super::Faults::restart) has used no topic yet.
    UnknownTopic,
    /// A partition has no position: the consumer is told [`ConsumerEvent::NoPosition`](foldstream::ports::ConsumerEvent)
    /// with this reason, for the first of its partitions or of those that it is assigned next, and gets nothing more of
    /// it. A commit for a [recreated](NoPosition::Recreated) topic is stale.
    NoPosition(NoPosition),
    /// The group expels the consumer: it is told that its partitions are lost, joins again as a new member, and gets
    /// what it has not committed once more.
    LoseSession,
    /// **Breaks the contract**: a read misses a commit that others follow.
    Hole,
    /// **Breaks the contract**: a read misses the commit whose first event has this version.
    HoleAt(Version),
    /// **Breaks the contract**: a read shows a commit without its last events.
    TornCommit,
    /// **Breaks the contract**: the commit, or the last of several that are appended together, is not seen by the next
    /// reads of its stream, so many.
    Hide(u32),
}

impl Fault {
    /// Fails with an error that the test makes, of the port's own type.
    ///
    /// # Panics
    /// The call panics if the error is of another port's type.
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

    /// A rule that always injects this fault into calls of these methods. Narrow it down by the methods of [`Rule`].
    #[must_use]
    pub fn on(self, ops: impl Into<Ops>) -> Rule {
        Rule::new(self).on(ops)
    }
    /// A rule that always injects this fault, wherever it applies. Narrow it down by the methods of [`Rule`].
    #[must_use]
    pub fn anywhere(self) -> Rule {
        Rule::new(self)
    }

    /// Returns true if a store that does this is broken: only for tests of how callers defend themselves.
    pub const fn breaks_the_contract(&self) -> bool {
        matches!(
            self,
            Self::Hole | Self::HoleAt(_) | Self::TornCommit | Self::Hide(_)
        )
    }

    /// Returns true if it makes sense for a method.
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
            // An event that `next` has taken is told: nothing may be lost between bus and caller.
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
            Self::HoldBack(_) | Self::LoseSession | Self::NoPosition(_) => op == Op::Next,
            Self::Hole | Self::HoleAt(_) | Self::TornCommit => op == Op::Read,
            Self::Hide(_) => matches!(op, Op::Append | Op::AppendAll),
        }
    }

    /// The same with its duration changed, if it has one.
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

/// Makes errors of one type: see [`Fault::error`].
#[derive(Clone)]
pub struct AnyError {
    kind: &'static str,
    make: Arc<dyn Fn() -> Box<dyn Any + Send> + Send + Sync>,
}
impl AnyError {
    /// An error of the port's type.
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
