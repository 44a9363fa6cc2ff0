//! One trace from a command to the mail that it causes, over two services.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
use foldstream::{
    Repository,
    operate::{JobRunner, Operator, Reason, Redrive},
    ports::{ControlStore, EventStore, MessageBus},
    publisher::Publisher,
    runner::{EventContext, HandlerError, HandlerResult, Listener, ProcessorPolicy, Runner, Start},
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use shop::{
    cart::{Cart, CartCommand, CartEvent, CartItem},
    money::Money,
    telemetry::OpenTelemetry,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tracing_subscriber::layer::SubscriberExt;

/// The export of one service.
struct Service {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Service {
    fn start() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
        let subscriber = tracing_subscriber::registry().with(layer);
        Self {
            exporter,
            provider,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    fn spans(&self, name: &str) -> Vec<SpanData> {
        self.provider.force_flush().unwrap();
        let spans = self.exporter.get_finished_spans().unwrap();
        spans.into_iter().filter(|span| span.name == name).collect()
    }

    fn span(&self, name: &str) -> SpanData {
        let mut spans = self.spans(name);
        assert_eq!(spans.len(), 1, "{name}: {spans:?}");
        spans.remove(0)
    }
}

/// Puts a second cart into the shop for each first item of another.
struct SecondCart(Repository<Cart>);
impl Listener for SecondCart {
    const NAME: &'static str = "second_cart";
    type Events = CartEvent;
    async fn handle(&self, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
        if matches!(event, CartEvent::CartItemAdded(..)) && ctx.stream().id() == "first" {
            let metadata = ctx.caused("second");
            self.0
                .execute_with(&"second".into(), add_item(), metadata)
                .await?;
        }
        Ok(())
    }
}

/// Fails until it is mended.
#[derive(Clone, Default)]
struct Mailer(Arc<AtomicBool>);
impl Listener for Mailer {
    const NAME: &'static str = "mailer";
    type Events = CartEvent;
    async fn handle(&self, _: &CartEvent, _: &EventContext) -> HandlerResult {
        match self.0.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(HandlerError::permanent("the template is broken")),
        }
    }
}

fn add_item() -> CartCommand {
    let item = serde_json::json!({
        "stock_code": "84077", "description": "", "quantity": 1, "unit_price": Money::ZERO,
        "invoiced_at": "2010-12-01T08:26:00Z", "country": "France",
    });
    CartCommand::AddItem {
        item: serde_json::from_value::<CartItem>(item).unwrap(),
        in_stock: 10,
    }
}

#[tokio::test]
async fn command_append_publish_and_handle_are_one_trace_over_two_services() {
    let store: Arc<dyn EventStore> = InMemoryEventStore::new();
    let control: Arc<dyn ControlStore> = InMemoryControlStore::new();
    let memory = InMemoryMessageBus::new();
    assert!(memory.create_topic("GlobalEvents", 1));
    let bus: Arc<dyn MessageBus> = memory;
    let traces = OpenTelemetry::default();

    // The first service stores and publishes.
    let writer = Service::start();
    let carts = Repository::<Cart>::new(store.clone()).with_trace_context(traces.clone());
    carts.execute(&"first".into(), add_item()).await.unwrap();
    let publisher = Publisher::new(store.clone(), bus.clone(), control.clone());
    let publisher = publisher.with_trace_context(traces.clone());
    assert!(publisher.publish_pending().await.unwrap().failed.is_empty());
    let command = writer.span("execute CartCommand");
    let append = writer.span("append");
    let publish = writer.span("publish GlobalEvents");
    drop(writer);

    // The second service handles the event, and executes a command.
    let reader = Service::start();
    let runner = Runner::builder(bus, control, "shop")
        .with_trace_context(traces)
        .listener_with(
            SecondCart(carts),
            ProcessorPolicy::listener().with_start(Start::Beginning),
        )
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    let handle = reader.span("process second_cart");
    let second = reader.span("execute CartCommand");
    let second_append = reader.span("append");

    let trace = command.span_context.trace_id();
    assert_eq!(command.parent_span_id, SpanId::INVALID);
    for (span, parent) in [
        (&append, &command),
        (&publish, &command),
        (&handle, &command),
        (&second, &handle),
        (&second_append, &second),
    ] {
        assert_eq!(span.span_context.trace_id(), trace, "{}", span.name);
        let expected = parent.span_context.span_id();
        assert_eq!(span.parent_span_id, expected, "{}", span.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_is_a_trace_of_its_own_with_a_link_to_that_of_its_event() {
    let store: Arc<dyn EventStore> = InMemoryEventStore::new();
    let control: Arc<dyn ControlStore> = InMemoryControlStore::new();
    let memory = InMemoryMessageBus::new();
    assert!(memory.create_topic("GlobalEvents", 1));
    let bus: Arc<dyn MessageBus> = memory;
    let traces = OpenTelemetry::default();
    let service = Service::start();
    let carts = Repository::<Cart>::new(store.clone()).with_trace_context(traces.clone());
    carts.execute(&"first".into(), add_item()).await.unwrap();
    let publisher = Publisher::new(store, bus.clone(), control.clone());
    let published = publisher.publish_pending().await.unwrap();
    let events = usize::try_from(published.messages).unwrap();
    let mailer = Mailer::default();
    let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
    let runner = Runner::builder(bus, control.clone(), "shop").with_trace_context(traces);
    let runner = runner.listener_with(mailer.clone(), policy);
    let handle = runner.build().unwrap().start();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let failed = service.spans("process mailer");
    assert_eq!(failed.len(), events);

    mailer.0.store(true, Ordering::SeqCst);
    let operator = Operator::new(control);
    let reason = Reason::new("ann", "the template is mended").unwrap();
    let redrive = Redrive::all("mailer");
    operator.redrive(&redrive, &reason).await.unwrap();
    let jobs = JobRunner::new(operator, "ann");
    jobs.run_open(std::future::pending()).await.unwrap();
    handle.stop();
    handle.wait().await.into_result().unwrap();

    let command = service.span("execute CartCommand").span_context;
    let spans = service.spans("process mailer");
    let redriven = &spans[events..];
    assert_eq!(redriven.len(), events);
    for span in &spans[..events] {
        assert_eq!(span.span_context.trace_id(), command.trace_id());
        assert_eq!(span.links.len(), 0);
    }
    for span in redriven {
        assert_eq!(span.parent_span_id, SpanId::INVALID);
        assert_ne!(span.span_context.trace_id(), command.trace_id());
        let linked: Vec<_> = span.links.iter().map(|link| &link.span_context).collect();
        assert_eq!(linked.len(), 1);
        assert_eq!(linked[0].trace_id(), command.trace_id());
        assert_eq!(linked[0].span_id(), command.span_id());
    }
}
