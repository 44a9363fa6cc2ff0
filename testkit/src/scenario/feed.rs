//! The base of the scenarios of handlers: a runtime, the adapters in memory, and a log of what
//! happened.
use super::{diff::short, ports::Ports};
use crate::InMemoryControlStore;
use bytes::Bytes;
use foldstream::{
    BoxError, Clock, DomainEvent, IdSource, RecordedEvent, SourceUri, StreamHead, StreamId,
    Version,
    adapter::{encode_events, seal_append, to_message},
    chain,
    ports::{
        Append, AppendOutcome, Commit, EventData, EventStore, EventStoreError, MessageBus, ReadFrom,
    },
    runner::{ProcessorReport, Runner, RunnerBuilder, RunnerError},
};
use futures::TryStreamExt;
use std::{
    fmt::{Display, Write as _},
    num::NonZeroU32,
    sync::Arc,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// The topic of publishers and runners, unless they are given another one.
pub(super) const TOPIC: &str = "GlobalEvents";

/// Creates the scenario's own runtime, so that its tests need none.
///
/// With paused time a sleep takes no time: the clock jumps to the next timer as soon as no task can
/// run.
#[track_caller]
pub(super) fn runtime(is_paused: bool) -> Runtime {
    assert!(
        Handle::try_current().is_err(),
        "a scenario runs on a runtime of its own: make the test a plain #[test] instead of a #[tokio::test]"
    );
    match Builder::new_current_thread()
        .enable_all()
        .start_paused(is_paused)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => panic!("the scenario's runtime cannot be made: {error}"),
    }
}

/// Runs a future on the scenario's runtime.
///
/// During the run, jitter is drawn from a fixed seed, so that the run can be repeated. Afterwards
/// the thread's own random sequence continues.
pub(super) fn block_on<T>(runtime: &Runtime, future: impl Future<Output = T>) -> T {
    struct Restore(u64);
    impl Drop for Restore {
        fn drop(&mut self) {
            fastrand::seed(self.0);
        }
    }
    let _restore = Restore(fastrand::get_seed());
    fastrand::seed(0);
    runtime.block_on(future)
}

/// Returns the stream that a text names: a whole stream id, or else an id that only one of the
/// streams has.
fn named<'a>(
    text: &str,
    streams: impl IntoIterator<Item = &'a StreamId>,
) -> Result<&'a StreamId, String> {
    let streams: Vec<_> = streams.into_iter().collect();
    if let Some(stream) = streams.iter().find(|stream| stream.as_str() == text) {
        return Ok(stream);
    }
    let mut with_id = streams.iter().filter(|stream| stream.id() == text);
    match (with_id.next(), with_id.next()) {
        (Some(stream), None) => Ok(stream),
        (Some(one), Some(other)) => Err(format!(
            "{text:?} names {one} and {other}: write the whole stream id"
        )),
        (None, _) => Err(format!(
            "the scenario has no stream {text:?}, only {streams:?}"
        )),
    }
}

/// The adapters of one processor, and what has happened on them.
pub(super) struct Feed {
    runtime: Runtime,
    pub(super) ports: Ports,
    /// Set if gaps can be filled from the store.
    pub(super) has_history: bool,
    /// The number of times that the processor has started again from the beginning.
    lives: u32,
    /// The streams that were written to, each once.
    streams: Vec<StreamId>,
    log: Vec<(&'static str, String)>,
}

impl Feed {
    #[track_caller]
    pub(super) fn new() -> Self {
        Self {
            runtime: runtime(true),
            // With one partition and one record at a time, records are handled in the order in
            // which the test names them.
            ports: Ports::new(1),
            has_history: true,
            lives: 1,
            streams: Vec::new(),
            log: Vec::new(),
        }
    }

    #[track_caller]
    pub(super) fn run_in_real_time(&mut self) {
        self.runtime = runtime(false);
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.runtime, future)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// Stores events as one commit, and delivers them through the bus.
    #[track_caller]
    pub(super) fn deliver<E: DomainEvent>(
        &mut self,
        label: &'static str,
        id: &impl Display,
        events: impl IntoIterator<Item = E>,
    ) {
        let commit = self.write(label, id, events);
        self.publish(commit.recorded());
    }

    /// Stores an event unchanged, and delivers it through the bus.
    #[track_caller]
    pub(super) fn deliver_stored(
        &mut self,
        label: &'static str,
        stream: &str,
        name: String,
        schema_version: u16,
        payload: Bytes,
    ) {
        let commit = self.write_stored(label, stream, name, schema_version, payload);
        self.publish(commit.recorded());
    }

    /// Stores events as one commit.
    #[track_caller]
    pub(super) fn write<E: DomainEvent>(
        &mut self,
        label: &'static str,
        id: &impl Display,
        events: impl IntoIterator<Item = E>,
    ) -> Commit {
        let stream = match StreamId::new(E::AGGREGATE, id) {
            Ok(stream) => stream,
            Err(error) => panic!("the id \"{id}\" names no stream: {error}"),
        };
        let events: Vec<_> = events.into_iter().collect();
        let data = match encode_events(&events, &self.ports.upcasters) {
            Ok(data) => data,
            Err(error) => panic!(
                "the events of {stream} cannot be stored: {}\nevents: {}\n{}",
                chain(&error),
                short(&events),
                self.history()
            ),
        };
        let texts: Vec<_> = events.iter().map(short).collect();
        assert!(!data.is_empty(), "no event is given for {stream}");
        self.append(label, &stream, data, &texts)
    }

    /// Stores an event unchanged.
    #[track_caller]
    fn write_stored(
        &mut self,
        label: &'static str,
        stream: &str,
        name: String,
        schema_version: u16,
        payload: Bytes,
    ) -> Commit {
        let stream = match StreamId::parse(stream) {
            Ok(stream) => stream,
            Err(error) => panic!("{stream:?} names no stream as \"cart#c-1\" does: {error}"),
        };
        let text = format!(
            "{name}@{schema_version} {}",
            String::from_utf8_lossy(&payload)
        );
        let data = EventData::new(name, schema_version, payload);
        self.append(label, &stream, Arc::new([data]), &[text])
    }

    #[track_caller]
    fn append(
        &mut self,
        label: &'static str,
        stream: &StreamId,
        events: Arc<[EventData]>,
        texts: &[String],
    ) -> Commit {
        let ports = &self.ports;
        let stored = self.block_on(async {
            const ONE: Option<NonZeroU32> = NonZeroU32::new(1);
            let mut newest = ports.event_store.read(stream, ReadFrom::Newest, ONE);
            let newest = newest.try_next().await?;
            let head = newest.map_or_else(|| StreamHead::empty(stream.clone()), |c| c.head());
            let append = Append::after(head, ports.ids.commit_id(), ports.clock.now(), events)
                .with_metadata(ports.metadata.clone());
            let append = seal_append(append, &ports.payload_codecs).await?;
            Ok::<_, BoxError>((ports.event_store.append(&append).await?, append))
        });
        let commit = match stored {
            Ok((AppendOutcome::Appended(_), append)) => append.to_commit(),
            Ok((outcome, _)) => panic!("the events of {stream} cannot be stored: {outcome:?}"),
            Err(error) => panic!(
                "the events of {stream} cannot be stored: {}",
                chain(&*error)
            ),
        };
        for (version, text) in (commit.first_version.get()..).zip(texts) {
            self.note(label, format!("{stream} {version}  {text}"));
        }
        if !self.streams.contains(stream) {
            self.streams.push(stream.clone());
        }
        commit
    }

    /// Returns the stored event at a version of a stream.
    #[track_caller]
    pub(super) fn event(&self, stream: &str, version: u64) -> RecordedEvent {
        let stream = match named(stream, &self.streams) {
            Ok(stream) => stream,
            Err(reason) => panic!("{reason}\n{}", self.history()),
        };
        let read = self.block_on(async {
            let from = ReadFrom::Event(Version::new(version));
            let mut commits = self.ports.event_store.read(stream, from, None);
            let commit = commits.try_next().await?;
            let mut events = commit.iter().flat_map(Commit::recorded);
            Ok::<_, EventStoreError>(events.find(|e| e.header.version.get() == version))
        });
        match read {
            Ok(Some(event)) => event,
            Ok(None) => panic!("{stream} has no version {version}\n{}", self.history()),
            Err(error) => panic!("{stream} cannot be read: {}", chain(&error)),
        }
    }

    /// Publishes events to the bus.
    #[track_caller]
    pub(super) fn publish(&self, events: impl IntoIterator<Item = RecordedEvent>) {
        for event in events {
            let message = to_message(
                &event,
                &TOPIC.into(),
                &SourceUri::default(),
                crate::ManualClock::START,
            );
            if let Err(error) = self.block_on(self.ports.message_bus.publish(&message)) {
                panic!(
                    "the bus takes no event of {}: {}",
                    event.header.stream,
                    chain(&error)
                );
            }
        }
    }

    /// Runs a processor until it has dealt with what was published. Each run is a new process,
    /// which remembers nothing of the one before.
    #[track_caller]
    pub(super) fn run(&self, add: impl FnOnce(RunnerBuilder) -> RunnerBuilder) -> ProcessorReport {
        let group_prefix = format!("scenario-{}", self.lives);
        let ports = self.ports.clone();
        let mut builder = Runner::builder(ports.message_bus, ports.control_store, group_prefix)
            .with_topics([TOPIC])
            .with_ids(ports.ids)
            .with_upcasters(ports.upcasters)
            .with_payload_codecs(ports.payload_codecs);
        if self.has_history {
            builder = builder.with_event_store(ports.event_store);
        }
        let runner = match add(builder).build() {
            Ok(runner) => runner,
            Err(error) => panic!("the processor cannot be run: {}", chain(&error)),
        };
        let mut reports = self.block_on(runner.run_until_caught_up()).processors;
        match reports.pop() {
            Some(report) => report,
            None => {
                unreachable!("a runner reports on each of its processors, and this one has one")
            }
        }
    }

    /// Returns the streams written to, each once.
    pub(super) fn streams(&self) -> &[StreamId] {
        &self.streams
    }

    /// Forgets the processor's position, as a rebuild does.
    pub(super) fn begin_again(&mut self) {
        self.lives += 1;
        self.ports.control_store = InMemoryControlStore::with_clock(self.ports.clock.clone());
    }

    pub(super) fn note(&mut self, label: &'static str, text: String) {
        self.log.push((label, text));
    }

    /// Notes an occurrence of a stored event in the log.
    pub(super) fn note_event(&mut self, label: &'static str, event: &RecordedEvent) {
        let header = &event.header;
        let text = format!("{} {}  {}", header.stream, header.version, header.name);
        self.note(label, text);
    }

    /// Notes the result of a run in the log.
    pub(super) fn note_report(&mut self, report: &ProcessorReport) {
        let mut text = summary(report);
        if let Some(error) = &report.error {
            let _ = write!(text, "; {}", failed(error));
        }
        self.note("", text);
    }

    /// Returns the log, one step per line.
    pub(super) fn history(&self) -> String {
        let mut text = String::from("history:");
        if self.log.is_empty() {
            text.push_str(" none");
        }
        for (label, entry) in &self.log {
            let _ = match *label {
                "" => write!(text, "\n                  = {entry}"),
                label if entry.is_empty() => write!(text, "\n  {label}"),
                label => write!(text, "\n  {label:<14}  {entry}"),
            };
        }
        text.push('\n');
        text
    }
}

/// Returns the counts that are not zero.
pub(super) fn summary(report: &ProcessorReport) -> String {
    let counts = [
        (report.handled, "handled"),
        (report.filled, "of them filled in from the event store"),
        (report.duplicates, "dropped as duplicates"),
        (report.skipped, "skipped"),
        (report.shredded, "shredded"),
        (report.gaps_unverified, "gaps passed"),
        (report.retries, "retries"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    match counts.is_empty() {
        true => "nothing handled".into(),
        false => counts.join(", "),
    }
}

/// Returns the reason that a processor has halted, in one line.
pub(super) fn failed(error: &RunnerError) -> String {
    match error {
        RunnerError::Halted {
            stream,
            version,
            attempts,
            class,
            source,
            ..
        } => format!(
            "halted at {stream} {version} after {attempts} attempts: {class:?}: {}",
            chain(&**source)
        ),
        error => format!("halted: {}", chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_repeatable_and_leaves_the_threads_randomness_alone() {
        let runtime = runtime(true);
        let draw = || block_on(&runtime, async { fastrand::u64(..) });
        fastrand::seed(7);
        let (first, second) = (draw(), draw());
        assert_eq!(first, second);
        let after = fastrand::u64(..);
        fastrand::seed(7);
        assert_eq!(after, fastrand::u64(..));
    }

    #[test]
    fn a_stream_is_named_by_its_id_unless_two_have_it() {
        let stream = |text| StreamId::parse(text).unwrap();
        let streams = [stream("cart#a"), stream("order#a"), stream("cart#b")];
        assert_eq!(named("b", &streams), Ok(&streams[2]));
        assert_eq!(named("order#a", &streams), Ok(&streams[1]));
        assert!(
            named("a", &streams)
                .unwrap_err()
                .contains("cart#a and order#a")
        );
        assert!(
            named("c", &streams)
                .unwrap_err()
                .contains("no stream \"c\"")
        );
    }
}
