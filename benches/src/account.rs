//! The same account twice: for foldstream and for cqrs-es. An event is about 95 bytes of JSON.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

id!(pub(crate) AccountId);

/// The deposit command and event of both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Deposit {
    pub(crate) amount: u64,
    pub(crate) currency: String,
    pub(crate) reference: String,
}

impl Deposit {
    pub(crate) fn number(n: u64) -> Self {
        Self {
            amount: n,
            currency: "EUR".into(),
            reference: format!("transfer from account {n:020}"),
        }
    }

    /// Creates a deposit whose JSON has 80 bytes, for any `n` of up to ten digits.
    pub(crate) fn of_80_bytes(n: u64) -> Self {
        let digits = n.to_string().len();
        Self {
            amount: n,
            currency: "EUR".into(),
            reference: format!(
                "account {n:0>width$}",
                width = 29_usize.saturating_sub(digits)
            ),
        }
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub(crate) enum AccountEvent {
    Deposited(Deposit),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) balance: u64,
}

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, AccountEvent::Deposited(deposit): &AccountEvent) {
        self.balance += deposit.amount;
    }
}

impl Snapshot for Account {
    const STATE_VERSION: u32 = 1;
}

impl Decide<Deposit> for Account {
    type Error = Infallible;
    fn decide(&self, command: &Deposit, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![AccountEvent::Deposited(command.clone())])
    }
}

/// A command that makes several deposits.
#[derive(Clone, Debug)]
pub(crate) struct Deposits(pub(crate) Vec<Deposit>);

impl Decide<Deposits> for Account {
    type Error = Infallible;
    fn decide(&self, command: &Deposits, _: &Context) -> Decision<Self, Infallible> {
        let deposits = command.0.iter().cloned();
        Ok(deposits.map(AccountEvent::Deposited).collect())
    }
}

/// The account of the other library.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TheirAccount {
    pub(crate) balance: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum TheirEvent {
    Deposited(Deposit),
}

impl cqrs_es::DomainEvent for TheirEvent {
    fn event_type(&self) -> String {
        "Deposited".into()
    }
    fn event_version(&self) -> String {
        "1".into()
    }
}

impl cqrs_es::Aggregate for TheirAccount {
    const TYPE: &'static str = "account";
    type Command = Deposit;
    type Event = TheirEvent;
    type Error = Infallible;
    type Services = ();
    async fn handle(
        &mut self,
        command: Deposit,
        (): &(),
        sink: &cqrs_es::event_sink::EventSink<Self>,
    ) -> Result<(), Infallible> {
        sink.write(TheirEvent::Deposited(command), self).await;
        Ok(())
    }
    fn apply(&mut self, TheirEvent::Deposited(deposit): TheirEvent) {
        self.balance += deposit.amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deposit_of_80_bytes_has_80_bytes() {
        for n in [1, 99, 160, 9_999_999_999] {
            let json = serde_json::to_string(&Deposit::of_80_bytes(n)).unwrap();
            assert_eq!(json.len(), 80, "{json}");
        }
    }
}
