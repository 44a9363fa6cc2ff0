//! A whole service in one process: commands, publisher, runner, read model, and a shutdown that
//! loses nothing.
//!
//! Run it with `cargo run --example service`. In production, the in-memory adapters become those of
//! `foldstream-dynamodb` and `foldstream-kafka`.
use foldstream::{
    Aggregate, BoxError, Context, Decide, Decision, DomainEvent, Repository, id,
    publisher::{PollConfig, Publisher, TopicRoute},
    runner::{EventContext, HandlerResult, ModelId, Projector, Runner},
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
use std::{collections::BTreeMap, convert::Infallible, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

id!(AccountId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
enum AccountEvent {
    Deposited { amount: u64 },
}

#[derive(Clone, Debug, Default)]
struct Account;

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, _: &AccountEvent) {}
}

struct Deposit(u64);

impl Decide<Deposit> for Account {
    type Error = Infallible;
    fn decide(&self, &Deposit(amount): &Deposit, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![AccountEvent::Deposited { amount }])
    }
}

/// The read model: the balance of each account.
///
/// It has one place for its rows, whatever the generation. `Replay::in_place` builds such a model
/// again: a replay beside the live model would write into the rows that serve.
#[derive(Clone, Default)]
struct Balances(watch::Sender<BTreeMap<String, u64>>);

impl Projector for Balances {
    const NAME: &'static str = "balances";
    type Events = AccountEvent;

    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let AccountEvent::Deposited { amount } = event;
        let account = ctx.id::<AccountId>()?.to_string();
        self.0
            .send_modify(|balances| *balances.entry(account).or_default() += amount);
        Ok(())
    }

    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.0.send_replace(BTreeMap::new());
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The adapters. Topics are created by whoever operates the brokers.
    let events = InMemoryEventStore::new();
    let control = InMemoryControlStore::new();
    let bus = InMemoryMessageBus::new();
    bus.create_topic("bank", 3);

    let accounts = Repository::<Account>::new(events.clone()).with_cache(1_000);
    let publisher = Publisher::new(events.clone(), bus.clone(), control.clone())
        .with_route(TopicRoute::One("bank".into()))
        .with_source("urn:bank".parse()?);
    let balances = Balances::default();
    let runner = Runner::builder(bus, control, "bank-service")
        .with_topics(["bank"])
        .with_event_store(events)
        .projector(balances.clone())
        .build()?;

    // The publisher runs until its token is cancelled, and the processors until they are told to
    // stop. The handle tells how they are meanwhile.
    let shutdown = CancellationToken::new();
    let publishing = tokio::spawn({
        let stop = shutdown.clone();
        async move {
            let stopped = stop.cancelled_owned();
            publisher.poll(PollConfig::default(), stopped).await
        }
    });
    let processors = runner.start();

    for amount in [100, 20, 3] {
        let ann = AccountId::from("ann");
        accounts.execute(&ann, Deposit(amount)).await?;
    }
    let mut seen = balances.0.subscribe();
    let total = seen.wait_for(|balances| balances.get("ann") == Some(&123));
    println!("read model: {:?}", *total.await?);

    // The probes of an orchestrator, which asks until the service is ready.
    let mut probes = tokio::time::interval(Duration::from_millis(10));
    while !processors.health().readiness().is_ok() {
        probes.tick().await;
    }
    println!("ready, live: {}", processors.health().liveness().is_ok());

    // On SIGTERM, in production: what is in hand is finished and committed.
    shutdown.cancel();
    processors.stop();
    let published = publishing.await??;
    println!("published {} records", published.messages);
    for report in processors.wait().await.into_result()? {
        println!("{report:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_service_reaches_its_total_and_shuts_down() {
        super::main().unwrap();
    }

    #[test]
    fn the_readme_shows_this_main() {
        let source = include_str!("service.rs");
        let start = source.find("#[tokio::main]").unwrap();
        let end = start + source[start..].find("\n}\n").unwrap();
        assert!(include_str!("../README.md").contains(&source[start..end]));
    }
}
