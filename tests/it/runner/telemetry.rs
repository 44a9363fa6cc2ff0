//! Spans, traces over processes, and metrics.
use super::{handle::pass, harness::*};
use crate::{
    recorder::Recorder,
    support::{Account, AccountCommand, AccountEvent},
};
use foldstream::{
    Repository, TraceContext,
    operate::{JobRunner, Operator, Reason, Redrive},
    publisher::{Publisher, metrics as publishing},
    runner::{
        EventContext, HandlerError, HandlerResult, Listener, ModelId, ProcessorPolicy,
        ProcessorState, Projector, Start, metrics as names,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::{Span, field::Visit, span};
use tracing_subscriber::{Layer, layer::SubscriberExt, registry::LookupSpan};

/// A span as it was opened, with what was recorded in it later.
#[derive(Clone, Debug, Default)]
struct Opened {
    name: &'static str,
    fields: BTreeMap<String, String>,
    /// The id of the span that encloses it.
    parent: Option<u64>,
    /// The traceparent that it continues.
    adopted: Option<String>,
    /// The traceparents that it is linked to.
    links: Vec<String>,
}

/// All spans, by their ids, and the context that names them.
#[derive(Clone, Debug, Default)]
struct Traces(Arc<Mutex<BTreeMap<u64, Opened>>>);

impl Traces {
    fn named(&self, name: &str) -> Vec<(u64, Opened)> {
        let spans = self.0.lock().unwrap();
        let named = spans.iter().filter(|(_, span)| span.name == name);
        named.map(|(id, span)| (*id, span.clone())).collect()
    }
}

fn traceparent(span: u64) -> String {
    format!("00-0af7651916cd43dd8448eb211c80319c-{span:016x}-01")
}

impl TraceContext for Traces {
    fn current(&self) -> Option<String> {
        Some(traceparent(Span::current().id()?.into_u64()))
    }
    fn adopt(&self, span: &Span, traceparent: &str) {
        let id = span.id().unwrap().into_u64();
        let mut spans = self.0.lock().unwrap();
        spans.get_mut(&id).unwrap().adopted = Some(traceparent.into());
    }
    fn link(&self, span: &Span, traceparent: &str) {
        let id = span.id().unwrap().into_u64();
        let mut spans = self.0.lock().unwrap();
        spans.get_mut(&id).unwrap().links.push(traceparent.into());
    }
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);
impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        let text = text.trim_matches('"').to_owned();
        self.0.insert(field.name().into(), text);
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Traces {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        ctx: tracing_subscriber::layer::Context<'_, S>,
    ) {
        let mut seen = Opened {
            name: attributes.metadata().name(),
            parent: ctx.current_span().id().map(span::Id::into_u64),
            ..Opened::default()
        };
        attributes.record(&mut Fields(&mut seen.fields));
        self.0.lock().unwrap().insert(id.into_u64(), seen);
    }
    fn on_record(
        &self,
        id: &span::Id,
        values: &span::Record<'_>,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) {
        if let Some(seen) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(&mut Fields(&mut seen.fields));
        }
    }
}

fn collect() -> (Traces, tracing::subscriber::DefaultGuard) {
    let traces = Traces::default();
    let subscriber = tracing_subscriber::registry().with(traces.clone());
    (traces, tracing::subscriber::set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn the_span_of_a_handler_has_the_names_of_the_messaging_conventions() {
    let (traces, _guard) = collect();
    let world = World::new(1);
    world.deposit("a").await;
    let seen = Seen::failing(|_, _, attempt| match attempt {
        1 => Err(HandlerError::transient("down")),
        _ => Ok(()),
    });
    world
        .catch_up(seen, from_beginning())
        .await
        .into_result()
        .unwrap();
    let spans = traces.named("process");
    assert_eq!(spans.len(), 2, "{spans:?}");
    let (failed, fields) = (&spans[0].1.fields, &spans[1].1.fields);
    for (name, value) in [
        ("otel.kind", "consumer"),
        ("otel.name", "process seen"),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.consumer.group.name", SEEN),
        ("messaging.destination.name", TOPIC),
        ("messaging.destination.partition.id", "0"),
        ("messaging.kafka.offset", "0"),
        ("foldstream.stream", "account#a"),
        ("foldstream.version", "1"),
        ("foldstream.attempt", "2"),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(failed["error.type"], "transient");
    assert_eq!(failed["otel.status_code"], "ERROR");
    assert!(!fields.contains_key("error.type"), "{fields:?}");
}

/// Remembers the trace context that a command gets that it causes.
#[derive(Clone, Default)]
struct Causes(Arc<Mutex<Vec<Option<String>>>>);
impl Listener for Causes {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let caused = ctx.caused("step");
        let trace = caused.traceparent().map(ToOwned::to_owned);
        self.0.lock().unwrap().push(trace);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_continues_the_trace_of_its_event_and_gives_its_own_span_to_what_it_causes() {
    let (traces, _guard) = collect();
    let world = World::new(1);
    let writer = traceparent(4711);
    let mut commit = world.store("a", 1).await;
    commit.metadata = commit.metadata.with_traceparent(writer.clone());
    world.publish(&commit).await;
    let causes = Causes::default();
    let runner = world.builder().with_trace_context(traces.clone());
    let runner = runner.listener_with(causes.clone(), from_beginning());
    let runner = runner.build().unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    let spans = traces.named("process");
    let (id, span) = &spans[0];
    assert_eq!(span.adopted.as_deref(), Some(&*writer));
    assert_eq!(*causes.0.lock().unwrap(), [Some(traceparent(*id))]);
}

/// Fails at every event until it is mended, and then remembers the trace context of what it causes.
#[derive(Clone, Default)]
struct Mended(Arc<AtomicBool>, Causes);
impl Mended {
    fn handle(&self, ctx: &EventContext) -> HandlerResult {
        if !self.0.load(Ordering::SeqCst) {
            return Err(HandlerError::permanent("refused"));
        }
        let caused = ctx.caused("step");
        let trace = caused.traceparent().map(ToOwned::to_owned);
        self.1.0.lock().unwrap().push(trace);
        Ok(())
    }
}
impl Listener for Mended {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        Self::handle(self, ctx)
    }
}
impl Projector for Mended {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        Self::handle(self, ctx)
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// A letter of a listener, and a parked stream of a projector with and without an event store.
#[tokio::test(start_paused = true)]
async fn a_redrive_links_to_the_trace_of_its_event_and_begins_one_of_its_own() {
    for (is_listener, has_store) in [(true, false), (false, true), (false, false)] {
        let (traces, _guard) = collect();
        let world = World::new(1);
        let handler = Mended::default();
        // The second event waits behind the first one in a parked stream.
        let writers = [traceparent(4711), traceparent(4712)];
        let accounts = Repository::<Account>::new(world.store.clone());
        for writer in &writers {
            let deposit = AccountCommand::Deposit { amount: 1 };
            let metadata = foldstream::Metadata::new().with_traceparent(writer.clone());
            accounts
                .execute_with(&"a".into(), deposit, metadata)
                .await
                .unwrap();
        }
        let publisher = Publisher::new(
            world.store.clone(),
            world.bus.clone(),
            world.control.clone(),
        );
        publisher.publish_pending().await.unwrap();
        let mut runner = world.builder().with_trace_context(traces.clone());
        if has_store {
            runner = runner.with_event_store(world.store.clone());
        }
        let runner = match is_listener {
            true => runner.listener_with(
                handler.clone(),
                ProcessorPolicy::listener().with_start(Start::Beginning),
            ),
            false => runner.projector_with(
                handler.clone(),
                ProcessorPolicy::projector().with_start(Start::Beginning),
            ),
        };
        let handle = runner.build().unwrap().start();
        pass(10).await;
        let before = traces.named("process");
        let given_up = if is_listener { 2 } else { 1 };
        assert_eq!(before.len(), given_up, "{before:?}");
        for (n, (_, span)) in before.iter().enumerate() {
            assert_eq!(span.adopted.as_ref(), Some(&writers[n]));
            assert!(span.links.is_empty() && !span.fields.contains_key("foldstream.redrive"));
        }

        handler.0.store(true, Ordering::SeqCst);
        let operator = Operator::new(world.control.clone());
        let reason = Reason::new("ann", "mended").unwrap();
        operator
            .redrive(&Redrive::all("seen"), &reason)
            .await
            .unwrap();
        let jobs = JobRunner::new(operator, "job-1");
        let over = jobs.run_open(std::future::pending()).await;
        assert_eq!(over.unwrap(), 1, "{is_listener} {has_store}");
        let all = traces.named("process");
        let redriven: Vec<_> = all.iter().skip(given_up).collect();
        assert_eq!(redriven.len(), 2, "{is_listener} {has_store}: {all:?}");
        let mut caused = Vec::new();
        for (n, (id, span)) in redriven.into_iter().enumerate() {
            let what = format!("{is_listener} {has_store} {span:?}");
            assert_eq!(
                (&span.adopted, &span.links),
                (&None, &vec![writers[n].clone()]),
                "{what}"
            );
            assert_eq!(span.fields["foldstream.redrive"], "true", "{what}");
            caused.push(Some(traceparent(*id)));
        }
        assert_eq!(*handler.1.0.lock().unwrap(), caused);
        drop(handle);
    }
}

/// Returns the value of a metric of the processor `seen` with these labels beside its name.
fn of(recorder: &Recorder, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    recorder.of(name, &[&[(names::PROCESSOR, "seen")], labels].concat())
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_counts_and_state_without_ids_of_streams_or_events() {
    let recorder = Recorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new(1);
    world.deposit("stream-4711").await;
    let seen = Seen::failing(|_, version, attempt| match (version, attempt) {
        (3, _) => Err(HandlerError::permanent("no such address")),
        (_, 1) => Err(HandlerError::transient("down")),
        _ => Ok(()),
    });
    let runner = world.builder().listener_with(seen, from_beginning());
    let handle = runner.build().unwrap().start();
    // Counters grow by what is new.
    for _ in 0..2 {
        pass(10).await;
        world.deposit("stream-4711").await;
    }
    pass(10).await;
    drop(handle);
    let state = |state: &str| of(&recorder, names::STATE, &[(names::OUTCOME, state)]);
    assert_eq!((state("halted"), state("running")), (Some(1.0), Some(0.0)));
    let handled = [(names::OUTCOME, "handled")];
    assert_eq!(of(&recorder, names::EVENTS, &handled), Some(2.0));
    assert_eq!(of(&recorder, names::RETRIES, &[]), Some(2.0));
    assert_eq!(of(&recorder, names::IN_FLIGHT, &[]), Some(0.0));
    let keys = recorder.keys();
    let calls = keys
        .iter()
        .filter(|key| key.starts_with(names::PROCESS_DURATION));
    let calls: Vec<_> = calls.collect();
    // Those that went well, and two classes of failures.
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert!(calls.iter().any(|key| key.contains("error.type=permanent")));
    assert!(keys.iter().all(|key| !key.contains("4711")), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_command_stores_is_published_and_handled_in_its_trace() {
    let (traces, _guard) = collect();
    let world = World::new(1);
    let accounts = Repository::<Account>::new(world.store.clone());
    let accounts = accounts.with_trace_context(traces.clone());
    let deposit = || AccountCommand::Deposit { amount: 1 };
    accounts.execute(&"a".into(), deposit()).await.unwrap();
    // A trace that the caller names is stored as it is.
    let given = foldstream::Metadata::new().with_traceparent(traceparent(4711));
    let given = accounts.execute_with(&"b".into(), deposit(), given).await;
    given.unwrap();
    let control = world.control.clone();
    let publisher = Publisher::new(world.store.clone(), world.bus.clone(), control);
    let publisher = publisher.with_trace_context(traces.clone());
    let report = publisher.publish_pending().await.unwrap();
    assert_eq!(report.messages, 2, "{report:?}");
    let runner = world.builder().with_trace_context(traces.clone());
    let runner = runner.listener_with(Seen::new(), from_beginning());
    let runner = runner.build().unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();

    let commands = traces.named("execute");
    let command = commands[0].0;
    assert_eq!(commands[0].1.fields["otel.name"], "execute AccountCommand");
    assert_eq!(traces.named("append")[0].1.parent, Some(command));
    for name in ["publish", "process"] {
        let spans = traces.named(name);
        let of = |stream: &str| {
            let mut spans = spans.iter();
            let found = spans.find(|(_, span)| span.fields["foldstream.stream"] == stream);
            found.unwrap().1.adopted.clone()
        };
        assert_eq!(of("account#a"), Some(traceparent(command)), "{name}");
        assert_eq!(of("account#b"), Some(traceparent(4711)), "{name}");
    }
}

/// The exporter for Prometheus writes `_` for each character that its names cannot have.
#[test]
fn the_alerts_of_prometheus_watch_metrics_labels_and_states_that_exist() {
    let alerts = include_str!("../../../deploy/prometheus/alerts.yaml");
    let known = [
        names::PROCESSOR,
        names::OUTCOME,
        names::EVENTS,
        names::STATE,
        names::LAG_TIME,
        names::STUCK,
        names::PARKED,
        names::DEAD_LETTERS,
        names::DEAD_LETTER_RECORDS,
        publishing::PUBLISHER,
        publishing::TOPIC,
        publishing::LAG_TIME,
        publishing::FAILURES,
        publishing::DIRTY,
    ];
    let known: BTreeSet<_> = known.iter().map(|name| name.replace('.', "_")).collect();
    let expressions: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    assert!(!expressions.is_empty());
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expressions.iter().flat_map(|e| e.split(|c| !is_part(c)));
    let used: BTreeSet<_> = words
        .filter(|word| word.starts_with("foldstream_") || word.starts_with("messaging_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(used, known);

    let quoted = expressions
        .iter()
        .flat_map(|e| e.split('"').skip(1).step_by(2));
    let states = [
        ProcessorState::Halted,
        ProcessorState::Held,
        ProcessorState::Unreachable,
    ];
    let states = states.iter().map(ToString::to_string);
    // The other two are outcomes, which the documentation of their metrics lists.
    let outcomes = ["gap_unverified", "not_sent"].map(str::to_owned);
    let values: BTreeSet<_> = states.chain(outcomes).collect();
    assert_eq!(quoted.map(str::to_owned).collect::<BTreeSet<_>>(), values);
}
