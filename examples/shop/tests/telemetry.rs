//! One trace from a command to the mail that it causes, over two services.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
use foldstream::{
    Repository,
    ports::{ControlStore, EventStore, MessageBus},
    publisher::Publisher,
    runner::{EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, Start},
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};
use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use shop::{
    cart::{Cart, CartCommand, CartEvent, CartItem},
    money::Money,
    telemetry::OpenTelemetry,
};
use std::sync::Arc;
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
