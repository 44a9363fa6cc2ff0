use foldstream::runner::{
    EventContext, HandlerError, HandlerResult, Listener, ModelId, Position, Projector,
};
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, EventId, StreamId, Version, id};
use std::{collections::BTreeMap, sync::{Arc, Mutex}};

id!(pub AccountId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub enum AccountEvent {
    Deposited { amount: u64 },
    Withdrawn { amount: u64 },
}
pub use AccountEvent::{Deposited, Withdrawn};

#[derive(Clone, Debug)]
pub enum AccountCommand {
    Deposit { amount: u64 },
    Withdraw { amount: u64 },
}
pub use AccountCommand::{Deposit, Withdraw};

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{missing} are missing")]
pub struct InsufficientFunds { pub missing: u64 }

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account { pub balance: u64 }

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            Deposited { amount } => self.balance += amount,
            Withdrawn { amount } => self.balance -= amount,
        }
    }
}

impl Decide<AccountCommand> for Account {
    type Error = InsufficientFunds;
    fn decide(&self, command: &AccountCommand, _: &Context) -> Decision<Self, InsufficientFunds> {
        match *command {
            Deposit { amount: 0 } | Withdraw { amount: 0 } => Ok(vec![]),
            Deposit { amount } => Ok(vec![Deposited { amount }]),
            Withdraw { amount } if amount > self.balance => {
                Err(InsufficientFunds { missing: amount - self.balance })
            }
            Withdraw { amount } => Ok(vec![Withdrawn { amount }]),
        }
    }
}

/// A read model: each balance, with the version that it is of. Clones share the rows.
#[derive(Clone, Debug, Default)]
pub struct Balances { rows: Arc<Mutex<BTreeMap<String, (u64, Version)>>> }

impl Balances {
    pub fn all(&self) -> BTreeMap<String, u64> {
        let rows = self.rows.lock().unwrap();
        rows.iter().map(|(id, (balance, _))| (id.clone(), *balance)).collect()
    }
}

impl Projector for Balances {
    const NAME: &'static str = "balances";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let mut rows = self.rows.lock().unwrap();
        let (balance, version) = rows.entry(ctx.stream().id().into()).or_default();
        if ctx.version() > *version {
            match event {
                Deposited { amount } => *balance += amount,
                Withdrawn { amount } => *balance -= amount,
            }
            *version = ctx.version();
        }
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.rows.lock().unwrap().clear();
        Ok(())
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let rows = self.rows.lock().unwrap();
        Ok(Position::stored(rows.get(stream.id()).map_or(Version::NONE, |row| row.1)))
    }
}

/// A side effect: one mail for each withdrawal of 100 or more. Clones share the outbox.
#[derive(Clone, Debug, Default)]
pub struct Alerts { outbox: Arc<Mutex<BTreeMap<EventId, String>>> }

impl Alerts {
    pub fn sent(&self) -> Vec<String> {
        self.outbox.lock().unwrap().values().cloned().collect()
    }
}

impl Listener for Alerts {
    const NAME: &'static str = "alerts";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        if let Withdrawn { amount: amount @ 100.. } = event {
            if ctx.stream().id() == "nobody" {
                return Err(HandlerError::permanent("nobody has no address"));
            }
            // The event's id is the same on every delivery: the key by which a repetition is known.
            let mail = format!("{amount} from {}", ctx.stream().id());
            self.outbox.lock().unwrap().insert(ctx.event_id(), mail);
        }
        Ok(())
    }
}
