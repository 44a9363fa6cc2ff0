//! An account, a sound and an unsound projector, and a listener that fails as configured.
use async_trait::async_trait;
use bytes::Bytes;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, EventId, Opened, PayloadCodec,
    PayloadContext, PayloadError, Sealed, StreamId, Version, id,
    runner::{EventContext, HandlerError, HandlerResult, Listener, ModelId, Position, Projector},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

id!(pub(super) AccountId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub(super) enum AccountEvent {
    #[event(version = 2)]
    Deposited {
        amount: u64,
        note: String,
    },
    Withdrawn {
        amount: u64,
    },
}
pub(super) use AccountEvent::Withdrawn;

pub(super) fn deposited(amount: u64) -> AccountEvent {
    AccountEvent::Deposited {
        amount,
        note: String::new(),
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "loan")]
pub(super) enum LoanEvent {
    Granted,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Account {
    pub(super) balance: u64,
}
impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::Deposited { amount, .. } => self.balance += amount,
            Withdrawn { amount } => self.balance -= amount,
        }
    }
}
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("insufficient funds")]
pub(super) struct InsufficientFunds;
pub(super) struct Deposit(pub(super) u64);
impl Decide<Deposit> for Account {
    type Error = InsufficientFunds;
    fn decide(&self, command: &Deposit, _: &Context) -> Decision<Self, InsufficientFunds> {
        Ok(vec![deposited(command.0)])
    }
}
pub(super) struct Withdraw(pub(super) u64);
impl Decide<Withdraw> for Account {
    type Error = InsufficientFunds;
    fn decide(&self, command: &Withdraw, _: &Context) -> Decision<Self, InsufficientFunds> {
        match command.0 {
            amount if amount > self.balance => Err(InsufficientFunds),
            amount => Ok(vec![Withdrawn { amount }]),
        }
    }
}

/// Reverses payloads. Payloads of the ids in the list are unreadable.
#[derive(Debug, Default)]
pub(super) struct Reversed(pub(super) Mutex<Vec<String>>);

#[async_trait]
impl PayloadCodec for Reversed {
    fn tag(&self) -> &'static str {
        "reversed"
    }
    async fn seal(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Sealed, PayloadError> {
        Ok(Sealed::Payload(payload.iter().rev().copied().collect()))
    }
    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError> {
        let gone = self.0.lock().unwrap();
        Ok(match gone.iter().any(|id| id == context.stream.id()) {
            true => Opened::Shredded,
            false => Opened::Payload(payload.iter().rev().copied().collect()),
        })
    }
}

/// A balance and its version.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) balance: i64,
    pub(super) version: u64,
}

pub(super) const fn row(balance: i64, version: u64) -> Row {
    Row { balance, version }
}

pub(super) type Rows = BTreeMap<String, Row>;

fn take(row: &mut Row, event: &AccountEvent, version: Version) {
    match event {
        AccountEvent::Deposited { amount, .. } => row.balance += *amount as i64,
        Withdrawn { amount } => row.balance -= *amount as i64,
    }
    row.version = version.get();
}

/// Stores its position with its rows, writes only newer rows, and can reset itself.
#[derive(Clone, Default)]
pub(super) struct Balances(pub(super) Arc<Mutex<Rows>>);

impl Balances {
    pub(super) fn rows(&self) -> Rows {
        self.0.lock().unwrap().clone()
    }
}

impl Projector for Balances {
    const NAME: &'static str = "balances";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let mut rows = self.0.lock().unwrap();
        let row = rows.entry(ctx.stream().id().into()).or_default();
        if ctx.version().get() > row.version {
            take(row, event, ctx.version());
        }
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.0.lock().unwrap().clear();
        Ok(())
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let rows = self.0.lock().unwrap();
        let row = rows.get(stream.id());
        Ok(Position::stored(Version::new(row.map_or(0, |r| r.version))))
    }
}

/// Sums every event without a position, fails below zero, and does not empty itself in a reset.
#[derive(Default)]
pub(super) struct Naive(Mutex<Rows>);

impl Naive {
    pub(super) fn rows(&self) -> Rows {
        self.0.lock().unwrap().clone()
    }
}

impl Projector for Naive {
    const NAME: &'static str = "naive";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let mut rows = self.0.lock().unwrap();
        let row = rows.entry(ctx.stream().id().into()).or_default();
        let mut next = row.clone();
        take(&mut next, event, ctx.version());
        if next.balance < 0 {
            return Err(HandlerError::permanent("below zero"));
        }
        *row = next;
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// The result of a listener at an attempt, from 1.
type Script = dyn Fn(&AccountEvent, u32) -> HandlerResult + Send + Sync;

/// A listener that reports withdrawals, and fails as configured.
pub(super) struct Alerts {
    sent: Mutex<Vec<(EventId, u64)>>,
    script: Box<Script>,
    takes: Duration,
}

impl Alerts {
    pub(super) fn failing(
        script: impl Fn(&AccountEvent, u32) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        Self {
            sent: Mutex::default(),
            script: Box::new(script),
            // Longer than any test takes in real time, so only paused time gets through this.
            takes: Duration::from_secs(20),
        }
    }
    /// Returns the listener without its delay per event.
    pub(super) fn at_once(self) -> Self {
        Self {
            takes: Duration::ZERO,
            ..self
        }
    }
    pub(super) fn new() -> Self {
        Self::failing(|_, _| Ok(()))
    }
    pub(super) fn amounts(&self) -> Vec<u64> {
        let sent = self.sent.lock().unwrap();
        sent.iter().map(|(_, amount)| *amount).collect()
    }
}

impl Listener for Alerts {
    const NAME: &'static str = "alerts";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        tokio::time::sleep(self.takes).await;
        (self.script)(event, ctx.attempt())?;
        if let Withdrawn { amount } = event {
            self.sent.lock().unwrap().push((ctx.event_id(), *amount));
        }
        Ok(())
    }
}
