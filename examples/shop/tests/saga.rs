//! The saga that has orders paid: nothing happens twice, whatever comes twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
use foldstream::{
    EventHeader, Metadata, Recorded, Repository,
    ports::EventStore,
    runner::{
        ErrorClass, EventContext, EventSource, HandlerResult, Listener, ModelId, ProcessorPolicy,
        Runner, Start,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore,
    faults::{Fault, Faults, Op},
};
use futures::TryStreamExt;
use shop::{
    backend::Backend,
    cart::{Cart, CartCommand, CartId, CartItem},
    payment::{Payment, PaymentCommand, PaymentEvent},
    pipeline,
    provider::PaymentProvider,
    saga::{self, OrderEvent, PaymentSaga},
};
use std::time::Duration;

fn order() -> CartId {
    CartId::from("c1")
}

/// Orders one item for 2.55.
async fn check_out(carts: &Repository<Cart>, metadata: Metadata) {
    let item = CartItem {
        stock_code: "tea".into(),
        description: String::new(),
        quantity: 1,
        unit_price: "2.55".parse().unwrap(),
        invoiced_at: foldstream::Timestamp::from_micros(0),
        customer: None,
        country: "France".into(),
    };
    let add = CartCommand::AddItem { item, in_stock: 10 };
    carts.execute(&order(), add).await.unwrap();
    let command = CartCommand::CheckOut;
    carts
        .execute_with(&order(), command, metadata)
        .await
        .unwrap();
}

fn runner(backend: &Backend, provider: &PaymentProvider) -> Runner {
    let saga = PaymentSaga::new(backend.payments(), provider.clone());
    let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
    backend
        .runner()
        .listener_with(saga, policy)
        .build()
        .unwrap()
}

/// Publishes and handles until no command adds an event.
async fn settle(backend: &Backend, provider: &PaymentProvider) {
    while pipeline::publish_all(backend).await.unwrap() > 0 {
        let report = runner(backend, provider).run_until_caught_up().await;
        report.into_result().unwrap();
    }
}

async fn payments(payments: &Repository<Payment>) -> Vec<Recorded<PaymentEvent>> {
    payments.history(&order()).try_collect().await.unwrap()
}

fn names(events: &[Recorded<PaymentEvent>]) -> Vec<String> {
    events.iter().map(|e| e.header.name.to_string()).collect()
}

/// Returns the context in which the saga meets an event.
fn delivered(header: &EventHeader) -> EventContext {
    let model = ModelId::new(PaymentSaga::NAME, 1);
    EventContext::new(model, header.clone(), EventSource::History)
}

#[tokio::test(start_paused = true)]
async fn an_order_is_paid_and_every_step_names_its_cause() {
    let (backend, provider) = (Backend::embedded(), PaymentProvider::default());
    let carts = backend.carts();
    check_out(&carts, Metadata::new().with_correlation_id("request-7")).await;
    settle(&backend, &provider).await;

    let paid = payments(&backend.payments()).await;
    assert_eq!(names(&paid), ["PaymentRequested", "PaymentSettled"]);
    let cart: Vec<_> = carts.history(&order()).try_collect().await.unwrap();
    let causes = [&cart.last().unwrap().header, &paid[0].header];
    for ((effect, cause), step) in paid.iter().zip(causes).zip(["request", "record"]) {
        let (metadata, cause) = (&effect.header.metadata, cause.event_id.to_string());
        assert_eq!(metadata.causation_id().unwrap().as_str(), cause);
        let command = format!("payments/{cause}/{step}");
        assert_eq!(metadata.command_id().unwrap().as_str(), command);
        assert_eq!(metadata.correlation_id().unwrap().as_str(), "request-7");
    }
    assert_eq!(provider.charges(), [(order(), "2.55".parse().unwrap())]);
}

/// The process died before it could commit the offsets, or an operator redrives the events.
#[tokio::test(start_paused = true)]
async fn events_that_come_again_charge_and_record_nothing_again() {
    let (backend, provider) = (Backend::embedded(), PaymentProvider::default());
    let carts = backend.carts();
    check_out(&carts, Metadata::new()).await;
    settle(&backend, &provider).await;
    let before = payments(&backend.payments()).await;

    let saga = PaymentSaga::new(backend.payments(), provider.clone());
    let mut cart = carts.history(&order());
    while let Some(Recorded { header, event, .. }) = cart.try_next().await.unwrap() {
        let event = OrderEvent::Cart(event);
        handled(saga.handle(&event, &delivered(&header)).await);
    }
    for Recorded { header, event, .. } in &before {
        let event = OrderEvent::Payment(event.clone());
        handled(saga.handle(&event, &delivered(header)).await);
    }
    assert_eq!(names(&payments(&backend.payments()).await), names(&before));
    assert_eq!(provider.charges().len(), 1);
}

/// A declined payment may be requested again by the customer, so the rules of the payment alone
/// would take a redelivered order for a second request.
#[tokio::test]
async fn a_redelivered_order_is_not_taken_for_a_second_request_of_the_customer() {
    let (backend, provider) = (Backend::embedded(), PaymentProvider::default());
    let (carts, known) = (backend.carts(), backend.payments());
    check_out(&carts, Metadata::new()).await;
    let cart: Vec<_> = carts.history(&order()).try_collect().await.unwrap();
    let checked_out = cart.last().unwrap();
    let event = OrderEvent::Cart(checked_out.event.clone());
    let saga = PaymentSaga::new(backend.payments(), provider);
    let ctx = delivered(&checked_out.header);
    handled(saga.handle(&event, &ctx).await);
    let reason = "no cover".into();
    known
        .execute(&order(), PaymentCommand::Decline { reason })
        .await
        .unwrap();

    handled(saga.handle(&event, &ctx).await);
    let events = names(&payments(&known).await);
    assert_eq!(events, ["PaymentRequested", "PaymentDeclined"]);
}

/// Servers that do not answer for a while cost time, and no event.
#[tokio::test(start_paused = true)]
async fn an_order_that_cannot_be_published_for_a_moment_is_paid_all_the_same() {
    let steps = [
        [Op::Unpublished; 2],
        [Op::ClearUnpublished; 2],
        [Op::Put; 2],
        [Op::Publish, Op::PublishRun],
    ];
    for step in steps {
        let (mut backend, faults) = (Backend::embedded(), Faults::none());
        backend.store = faults.event_store(backend.store);
        backend.control = faults.control_store(backend.control);
        backend.bus = faults.message_bus(backend.bus);
        let provider = PaymentProvider::default();
        check_out(&backend.carts(), Metadata::new()).await;
        // Nobody waits without an end.
        faults.set([Fault::Unavailable.on(step)]);
        let failed = pipeline::publish_all(&backend).await.unwrap_err();
        let said = foldstream::chain(&failed).to_string();
        assert!(said.contains("unavailable"), "{step:?}: {said}");

        faults.set([Fault::Unavailable.on(step).first(60)]);
        pipeline::publish_all(&backend).await.unwrap();
        let report = runner(&backend, &provider).run_until_caught_up().await;
        report.into_result().unwrap();
        settle(&backend, &provider).await;
        let calls: u64 = step.iter().map(|op| faults.calls(*op)).sum();
        assert!(calls > 60, "{step:?}");
        assert_eq!(provider.charges().len(), 1, "{step:?}");
    }
}

#[tokio::test]
async fn a_crash_between_charge_and_record_charges_once() {
    let (faults, store) = (Faults::none(), InMemoryEventStore::new());
    let provider = PaymentProvider::default();
    let faulty: std::sync::Arc<dyn EventStore> = faults.event_store(store.clone());
    let control = InMemoryControlStore::new();
    let hour = Duration::from_secs(3600);
    let known = Repository::<Payment>::new(faulty).with_idempotency(control, hour);
    let amount = "2.55".parse().unwrap();
    known
        .execute(&order(), PaymentCommand::Request { amount })
        .await
        .unwrap();
    let requested = payments(&known).await.remove(0);
    let saga = PaymentSaga::new(known.clone(), provider.clone());
    let event = OrderEvent::Payment(requested.event);
    let ctx = delivered(&requested.header);

    // The money is taken, and then the store does not answer.
    faults.set([Fault::LoseRequest.on(Op::Append)]);
    let failed = saga.handle(&event, &ctx).await.unwrap_err();
    assert_eq!(failed.class(), ErrorClass::Transient);
    assert_eq!(provider.charges().len(), 1);
    faults.disable();

    handled(saga.handle(&event, &ctx).await);
    assert_eq!((provider.calls(), provider.charges().len()), (2, 1));
    assert_eq!(
        names(&payments(&known).await),
        ["PaymentRequested", "PaymentSettled"]
    );
}

#[tokio::test]
async fn a_timer_expires_what_is_pending_once_and_nothing_that_is_paid() {
    let backend = Backend::embedded();
    let known = backend.payments();
    let amount = "2.55".parse().unwrap();
    let request = PaymentCommand::Request { amount };
    known.execute(&order(), request.clone()).await.unwrap();
    let ctx = delivered(&payments(&known).await[0].header);
    // A redelivered event hands the scheduler the same timer.
    let timer = saga::expiry(&ctx).map_err(|e| e.to_string()).unwrap();
    assert_eq!(
        timer,
        saga::expiry(&ctx).map_err(|e| e.to_string()).unwrap()
    );

    handled(saga::expire(&known, &timer).await);
    // The customer has tried again meanwhile, and the scheduler sends the old timer once more.
    known.execute(&order(), request).await.unwrap();
    handled(saga::expire(&known, &timer).await);
    let events = names(&payments(&known).await);
    assert_eq!(
        events,
        ["PaymentRequested", "PaymentDeclined", "PaymentRequested"]
    );

    let receipt = "r-1".into();
    known
        .execute(&order(), PaymentCommand::Settle { receipt })
        .await
        .unwrap();
    let ctx = delivered(&payments(&known).await[2].header);
    let late = saga::expiry(&ctx).map_err(|e| e.to_string()).unwrap();
    handled(saga::expire(&known, &late).await);
    assert_eq!(payments(&known).await.len(), 4);
}

fn handled(result: HandlerResult) {
    result.map_err(|error| error.to_string()).unwrap();
}
