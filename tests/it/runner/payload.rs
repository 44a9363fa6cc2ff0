//! Handlers receive opened payloads.
use super::harness::{SEEN, SENT_AT, Seen, TOPIC, World, error_of, from_beginning};
use crate::{
    payload::{Reverse, Vault, ann, sealed_accounts, stored, writing},
    support::{Account, AccountCommand::*, AccountEvent},
};
use async_trait::async_trait;
use bytes::Bytes;
use foldstream::{
    BoxError, CodecError, Decoded, EventSelector, EventSet, EventType, Opened, PayloadCodec,
    PayloadCodecs, PayloadContext, PayloadError, Repository, Sealed, SourceUri, Upcast, Upcasters,
    adapter::to_message,
    ports::MessageBus,
    runner::{
        ErrorClass, EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, RunnerError,
        RunnerReport, UnknownEvents,
    },
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Publishes deposits that are sealed in the store and so on the bus.
async fn published(codecs: &PayloadCodecs, amounts: &[u64]) -> World {
    let world = World::new(1);
    let accounts = sealed_accounts(&world.store, codecs);
    for &amount in amounts {
        accounts.execute(&ann(), Deposit { amount }).await.unwrap();
    }
    for commit in stored(&world.store, "ann").await {
        for event in commit.recorded() {
            let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), SENT_AT);
            assert_eq!(message.value.as_ref(), Some(&event.payload));
            world.bus.publish(&message).await.unwrap();
        }
    }
    world
}

async fn run(
    world: &World,
    codecs: &PayloadCodecs,
    listener: impl Listener,
    policy: ProcessorPolicy,
) -> RunnerReport {
    let builder = world.builder().with_payload_codecs(codecs.clone());
    let runner: Runner = builder.listener_with(listener, policy).build().unwrap();
    runner.run_until_caught_up().await
}

fn class(report: &RunnerReport) -> ErrorClass {
    match error_of(report) {
        RunnerError::Halted { class, .. } => *class,
        other => panic!("{other:?}"),
    }
}

/// Records the amounts that were deposited.
#[derive(Clone, Default)]
struct Amounts(Arc<Mutex<Vec<u64>>>);

impl Listener for Amounts {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, _: &EventContext) -> HandlerResult {
        if let AccountEvent::Deposited { amount } = event {
            self.0.lock().unwrap().push(*amount);
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_gets_what_was_sealed() {
    let codecs = PayloadCodecs::new()
        .with_writer(Arc::new(Reverse("reverse")))
        .with_writer(Vault::new());
    let world = published(&codecs, &[5, 6]).await;
    let amounts = Amounts::default();
    let report = run(&world, &codecs, amounts.clone(), from_beginning()).await;
    assert_eq!(report.into_result().unwrap()[0].handled, 2);
    assert_eq!(*amounts.0.lock().unwrap(), [5, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_shredded_event_is_passed_over_and_counted() {
    let vault = Vault::new();
    let codecs = writing(&vault);
    let world = published(&codecs, &[5, 1, 6]).await;
    vault.shred("ann");
    let amounts = Amounts::default();
    let report = run(&world, &codecs, amounts.clone(), from_beginning()).await;
    let report = report.into_result().unwrap();
    let counts = (report[0].handled, report[0].shredded, report[0].skipped);
    assert_eq!(counts, (1, 2, 0));
    assert_eq!(*amounts.0.lock().unwrap(), [1]);
    assert_eq!(world.committed(SEEN).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_key_service_that_is_away_is_asked_again() {
    let vault = Vault::new();
    let codecs = writing(&vault);
    let world = published(&codecs, &[5, 6]).await;
    vault.fail((0..5).map(|_| PayloadError::unavailable("no route")));
    let seen = Seen::new();
    let report = run(&world, &codecs, seen.clone(), from_beginning()).await;
    let report = report.into_result().unwrap();
    assert_eq!((seen.of("ann"), report[0].retries), (vec![1, 2], 5));
}

#[tokio::test(start_paused = true)]
async fn a_key_service_that_throttles_is_asked_after_the_pause_that_it_names() {
    let vault = Vault::new();
    let codecs = writing(&vault);
    let world = published(&codecs, &[5]).await;
    let pause = Duration::from_secs(20);
    vault.fail((0..10).map(|_| PayloadError::Throttled {
        retry_after: Some(pause),
        source: "slow down".into(),
    }));
    let (seen, started) = (Seen::new(), tokio::time::Instant::now());
    let report = run(&world, &codecs, seen.clone(), from_beginning()).await;
    report.into_result().unwrap();
    assert_eq!(seen.of("ann"), [1]);
    assert!(started.elapsed() >= pause * 10);
}

#[tokio::test(start_paused = true)]
async fn a_key_service_that_hangs_is_given_up_like_a_handler() {
    #[derive(Debug)]
    struct Hanging(Arc<Vault>);
    #[async_trait]
    impl PayloadCodec for Hanging {
        fn tag(&self) -> &'static str {
            self.0.tag()
        }
        async fn seal(&self, _: &PayloadContext<'_>, _: &Bytes) -> Result<Sealed, PayloadError> {
            Ok(Sealed::AsItIs)
        }
        async fn open(
            &self,
            context: &PayloadContext<'_>,
            payload: &Bytes,
        ) -> Result<Opened, PayloadError> {
            if self.0.opened() == 0 {
                let _ = self.0.open(context, payload).await;
                std::future::pending::<()>().await;
            }
            self.0.open(context, payload).await
        }
    }
    let vault = Vault::new();
    let world = published(&writing(&vault), &[5]).await;
    let codecs = PayloadCodecs::new().with_reader(Arc::new(Hanging(Vault::new())));
    let seen = Seen::new();
    let report = run(&world, &codecs, seen.clone(), from_beginning()).await;
    assert_eq!(report.into_result().unwrap()[0].retries, 1);
    assert_eq!(seen.of("ann"), [1]);
}

#[tokio::test(start_paused = true)]
async fn damage_and_a_missing_codec_are_poison_and_a_refusal_is_permanent() {
    let vault = Vault::new();
    let world = published(&writing(&vault), &[5]).await;
    let expect = async |codecs: PayloadCodecs, expected| {
        let seen = Seen::new();
        let report = run(&world, &codecs, seen.clone(), from_beginning()).await;
        assert_eq!((class(&report), seen.len()), (expected, 0));
        assert_eq!(world.committed(SEEN).await, 0);
    };
    expect(PayloadCodecs::new(), ErrorClass::Poison).await;
    vault.fail([PayloadError::damaged("a bit has changed")]);
    expect(writing(&vault), ErrorClass::Poison).await;
    vault.fail([PayloadError::refused("no permission to decrypt")]);
    expect(writing(&vault), ErrorClass::Permanent).await;
}

/// A type of events that has withdrawals only.
#[derive(Clone, Debug)]
struct Withdrawals;

impl EventSet for Withdrawals {
    fn selectors() -> Vec<EventSelector> {
        const TYPES: &[EventType] = &[EventType::new("Withdrawn", 1)];
        vec![EventSelector {
            aggregate: "account",
            types: TYPES,
        }]
    }
    fn decode_from(
        aggregate: &str,
        name: &str,
        _: u16,
        _: &[u8],
    ) -> Result<Decoded<Self>, CodecError> {
        Ok(match (aggregate, name) {
            ("account", "Withdrawn") => Decoded::Event(Self),
            ("account", _) => Decoded::Unknown,
            _ => Decoded::NotMine,
        })
    }
}

struct OnWithdrawal;
impl Listener for OnWithdrawal {
    const NAME: &'static str = "seen";
    type Events = Withdrawals;
    async fn handle(&self, _: &Withdrawals, _: &EventContext) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_of_no_interest_needs_no_codec() {
    let world = published(&writing(&Vault::new()), &[5, 6]).await;
    let none = PayloadCodecs::new();
    let report = run(&world, &none, OnWithdrawal, from_beginning()).await;
    let report = report.into_result().unwrap();
    assert_eq!((report[0].skipped, report[0].handled), (2, 0));
    // The event fails if unknown events must fail, or if another name may be of interest.
    let world = published(&writing(&Vault::new()), &[5]).await;
    let strict = from_beginning().with_unknown_events(UnknownEvents::Fail);
    let report = run(&world, &none, OnWithdrawal, strict).await;
    assert_eq!(class(&report), ErrorClass::Poison);
    let world = published(&writing(&Vault::new()), &[5]).await;
    let renames = Upcasters::new().with("account", "Deposited", 1, |payload| {
        Ok::<_, BoxError>(Upcast::Renamed {
            name: "Withdrawn".into(),
            schema_version: 1,
            payload,
        })
    });
    let builder = world.builder().with_upcasters(renames);
    let runner = builder
        .with_payload_codecs(writing(&Vault::new()))
        .listener_with(OnWithdrawal, from_beginning())
        .build()
        .unwrap();
    let report = runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(report[0].handled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_executes_a_command_keeps_the_class_of_its_codec() {
    struct Pays(Repository<Account>);
    impl Listener for Pays {
        const NAME: &'static str = "seen";
        type Events = AccountEvent;
        async fn handle(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
            self.0.execute(&"bob".into(), Deposit { amount: 3 }).await?;
            Ok(())
        }
    }
    let vault = Vault::new();
    let world = published(&PayloadCodecs::new(), &[5]).await;
    let accounts = sealed_accounts(&world.store, &writing(&vault));
    vault.fail([PayloadError::unavailable("no route")]);
    let none = PayloadCodecs::new();
    let report = run(&world, &none, Pays(accounts.clone()), from_beginning()).await;
    assert_eq!(report.into_result().unwrap()[0].retries, 1);
    let world = published(&none, &[5]).await;
    vault.shred("bob");
    let report = run(&world, &none, Pays(accounts), from_beginning()).await;
    assert_eq!(class(&report), ErrorClass::Permanent);
}
