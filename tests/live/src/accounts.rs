//! The events of the tests with processes, and handlers that record their effects.
use crate::Effects;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, EventSet, StreamId, id,
    runner::{EventContext, HandlerError, HandlerResult, Listener, ModelId, Projector},
};
use foldstream_dynamodb::{ReadModel, ReadModelRow};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    marker::PhantomData,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

id!(
    /// The id of an account.
    pub AccountId
);

/// The events of an account, as the newer build knows them.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub enum AccountEvent {
    /// Money came.
    Deposited {
        /// The amount that came.
        amount: u64,
    },
    /// Money went.
    Withdrawn {
        /// The amount that went.
        amount: u64,
    },
    /// Somebody objects. Handlers fail on it until the cause is mended.
    Disputed {
        /// The amount in dispute.
        amount: u64,
    },
}

/// The events of an account, as the older build knows them.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub enum OlderAccountEvent {
    /// Money came.
    Deposited {
        /// The amount that came.
        amount: u64,
    },
    /// Money went.
    Withdrawn {
        /// The amount that went.
        amount: u64,
    },
}

/// An account without a state: what happens is decided elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Account;

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, _: &AccountEvent) {}
}

impl Decide<Vec<AccountEvent>> for Account {
    type Error = Infallible;
    fn decide(&self, events: &Vec<AccountEvent>, _: &Context) -> Decision<Self, Infallible> {
        Ok(events.clone())
    }
}

/// The file whose existence says that the cause of all failures is mended. The function that
/// applies an event to a row has nothing else to know it from.
static MENDED: OnceLock<PathBuf> = OnceLock::new();

/// The failures of handlers.
#[derive(Clone, Copy, Debug)]
pub struct Failures {
    one_in: u32,
}

impl Failures {
    /// Creates failures of one in so many attempts at random (0: none), and of every dispute until
    /// the file exists.
    pub fn new(one_in: u32, mended: PathBuf) -> Self {
        MENDED.get_or_init(|| mended);
        Self { one_in }
    }

    /// Takes as long as a short request, and fails now and then.
    async fn attempt(self) -> HandlerResult {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..4))).await;
        if self.one_in > 0 && fastrand::u32(..self.one_in) == 0 {
            return Err(HandlerError::transient("the connection was reset"));
        }
        Ok(())
    }
}

fn refuse_dispute(event: &AccountEvent) -> HandlerResult {
    let is_mended = || MENDED.get().is_none_or(|file| file.exists());
    match event {
        AccountEvent::Disputed { .. } if !is_mended() => {
            Err(HandlerError::permanent("disputes are not supported"))
        }
        _ => Ok(()),
    }
}

/// A listener at `AtLeastOnce`.
#[derive(Debug)]
pub struct Statements {
    /// The effects of the listener.
    pub effects: Effects,
    /// The failures of the listener.
    pub failures: Failures,
}
impl Listener for Statements {
    const NAME: &'static str = "statements";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.failures.attempt().await?;
        refuse_dispute(event)?;
        self.effects.add(ctx);
        Ok(())
    }
}

/// A projector at `AtLeastOnce`.
#[derive(Debug)]
pub struct Ledger {
    /// The effects of the projector.
    pub effects: Effects,
    /// The failures of the projector.
    pub failures: Failures,
}
impl Projector for Ledger {
    const NAME: &'static str = "ledger";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.failures.attempt().await?;
        refuse_dispute(event)?;
        self.effects.add(ctx);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// The row of an account, at `ExactlyOnceEffect` under its own name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The sum of what came and went.
    pub sum: i64,
    /// The version of every event that was applied, in the order in which it was.
    pub versions: Vec<u64>,
}
impl ReadModelRow for Balance {
    const NAME: &'static str = "exact";
    type Events = AccountEvent;
    fn apply(row: &mut Option<Self>, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        refuse_dispute(event)?;
        let row = row.get_or_insert_default();
        row.versions.push(ctx.version().get());
        row.sum += match event {
            AccountEvent::Deposited { amount } => i64::try_from(*amount)?,
            AccountEvent::Withdrawn { amount } => -i64::try_from(*amount)?,
            AccountEvent::Disputed { .. } => 0,
        };
        Ok(())
    }
}

/// A projector at `Deduplicated` over the same rows: it leaves the positions to the runner, so that
/// an event may come again, and says so in the effects. Its rows ignore duplicates.
#[derive(Debug)]
pub struct Balances {
    /// The rows.
    pub rows: ReadModel<Balance>,
    /// The effects of the projector.
    pub effects: Effects,
    /// The failures of the projector.
    pub failures: Failures,
}
impl Projector for Balances {
    const NAME: &'static str = "balances";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.failures.attempt().await?;
        self.rows.project(event, ctx).await?;
        self.effects.add(ctx);
        Ok(())
    }
    async fn prepare(&self, model: &ModelId) -> HandlerResult {
        self.rows.prepare(model).await
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        self.rows.reset(model).await
    }
    async fn flush(&self, model: &ModelId) -> HandlerResult {
        self.rows.flush(model).await
    }
    async fn forget_buffered(&self, model: &ModelId, streams: &[StreamId]) -> HandlerResult {
        self.rows.forget_buffered(model, streams).await
    }
}

/// A projector of one build, which receives the events that the build knows.
#[derive(Debug)]
pub struct Journal<E> {
    effects: Effects,
    events: PhantomData<fn() -> Arc<E>>,
}
impl<E> Journal<E> {
    /// Creates the projector of a build.
    pub const fn new(effects: Effects) -> Self {
        Self {
            effects,
            events: PhantomData,
        }
    }
}
impl<E: EventSet> Projector for Journal<E> {
    const NAME: &'static str = "journal";
    type Events = E;
    async fn project(&self, _: &E, ctx: &EventContext) -> HandlerResult {
        self.effects.add(ctx);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}
