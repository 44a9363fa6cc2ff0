//! Publishing what is stored and running the processors, until no work is left.
use super::{Entry, PipelineScenario};
use crate::scenario::{
    feed::{TOPIC, block_on},
    ports::Ports,
};
use foldstream::{
    chain,
    ports::{ControlStore, EventStore, MessageBus, Segment},
    publisher::Publisher,
    runner::Runner,
};
use std::{num::NonZeroU32, sync::Arc};

impl PipelineScenario {
    /// The number of rounds of publishing and running in one [`run`](Self::run). Listeners that
    /// cause events without end exceed it.
    const MAX_ROUNDS: usize = 200;

    /// Publishes what is stored and runs every processor, repeatedly, until no work is left.
    ///
    /// Events that listeners cause are published and handled in the same run. A processor that
    /// halts stays halted until the next run.
    ///
    /// # Panics
    /// - If an event cannot be published.
    /// - If the listeners cause events without end.
    /// - If a call never returns and nothing limits it, unless the pipeline runs in real time.
    /// - If a processor has halted before and the test has not asserted it.
    #[track_caller]
    #[must_use = "a pipeline without a `then` checks nothing"]
    pub fn run(mut self) -> Self {
        self.check_halts_seen();
        self.has_run = true;
        self.open();
        for entry in &mut self.processors {
            entry.report = None;
        }
        let mut failure = None;
        for _ in 0..Self::MAX_ROUNDS {
            failure = self.publish().err();
            let was_killed = !self.run_processors();
            if failure.is_none() && !was_killed && self.is_all_published() {
                self.has_news = false;
                return self;
            }
            if self.faults.is_none()
                && let Some(failure) = failure
            {
                panic!("{failure}\n{}", self.history());
            }
        }
        panic!(
            "the pipeline does not come to rest: after {} rounds {}\n{}",
            Self::MAX_ROUNDS,
            failure.unwrap_or_else(|| "listeners still cause events".into()),
            self.history()
        );
    }

    /// Publishes the given events and then starts the processors, so that those that start at the
    /// end of the log start after the given events. No faults are injected here.
    #[track_caller]
    pub(super) fn open(&mut self) {
        if std::mem::replace(&mut self.is_open, true) {
            return;
        }
        let faults = self.faults.take();
        if let Err(failure) = self.publish() {
            panic!("{failure}\n{}", self.history());
        }
        self.run_processors();
        self.faults = faults;
    }

    /// Publishes what is stored. The error says what could not be published and why.
    fn publish(&mut self) -> Result<(), String> {
        let (store, bus, control) = self.process_ports();
        let publisher = Publisher::new(store, bus, control)
            .with_clock(self.ports.clock.clone())
            .with_ids(self.ports.ids.clone());
        let Some(published) = self.live(publisher.publish_pending()) else {
            return Err("the publisher was killed each time".into());
        };
        let report = published.map_err(|error| {
            let error = chain(&error);
            format!("the unpublished events cannot be listed: {error}")
        })?;
        match report.failed.first() {
            None => Ok(()),
            Some(failure) => {
                let (stream, error) = (&failure.stream, chain(&failure.error));
                Err(format!("{stream} cannot be published: {error}"))
            }
        }
    }

    /// Returns true if the store lists no unpublished commit, including those stored by listeners.
    #[track_caller]
    pub(super) fn is_all_published(&self) -> bool {
        const ONE: NonZeroU32 = NonZeroU32::MIN;
        let mut after = None;
        loop {
            let listing = self.ports.event_store.unpublished(Segment::ALL, after, ONE);
            match block_on(&self.runtime, listing) {
                Ok(page) if !page.keys.is_empty() => return false,
                Ok(page) if page.next.is_none() => return true,
                Ok(page) => after = page.next,
                Err(error) => panic!("the unpublished events cannot be listed: {}", chain(&error)),
            }
        }
    }

    /// Runs the processors that have not halted until they have dealt with what was published.
    /// Returns false if their process was killed first.
    #[track_caller]
    fn run_processors(&mut self) -> bool {
        let (store, bus, control) = self.process_ports();
        let mut builder = Runner::builder(bus, control, "pipeline")
            .with_topics([TOPIC])
            .with_ids(self.ports.ids.clone())
            .with_upcasters(self.ports.upcasters.clone())
            .with_payload_codecs(self.ports.payload_codecs.clone())
            .with_event_store(store);
        let has_halted = |entry: &Entry| entry.error().is_some();
        let running: Vec<_> = (0..self.processors.len())
            .filter(|at| !has_halted(&self.processors[*at]))
            .collect();
        if running.is_empty() {
            return true;
        }
        for at in &running {
            builder = (self.processors[*at].add)(builder);
        }
        let runner = match builder.build() {
            Ok(runner) => runner,
            Err(error) => panic!("the processors cannot be run: {error}"),
        };
        let Some(report) = self.live(runner.run_until_caught_up()) else {
            return false;
        };
        for (at, report) in running.into_iter().zip(report.processors) {
            self.processors[at].is_halt_seen = false;
            self.processors[at].add_report(report);
        }
        true
    }

    /// Returns the ports of the publisher and the runner: those of the pipeline, with its faults
    /// around them.
    fn process_ports(
        &self,
    ) -> (
        Arc<dyn EventStore>,
        Arc<dyn MessageBus>,
        Arc<dyn ControlStore>,
    ) {
        let Ports {
            event_store,
            message_bus,
            control_store,
            ..
        } = self.ports.clone();
        match &self.faults {
            None => (event_store, message_bus, control_store),
            Some(faults) => (
                faults.event_store(event_store),
                faults.message_bus(message_bus),
                faults.control_store(control_store),
            ),
        }
    }

    /// Runs the work of a process. `None` means that the process was killed, and the next call is
    /// another process.
    #[track_caller]
    fn live<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let work = async {
            match &self.faults {
                None => Some(work.await),
                Some(faults) => faults.run(work).await,
            }
        };
        let work = async {
            if !self.is_paused {
                return Ok(work.await);
            }
            tokio::time::timeout(Self::LONGEST, work).await
        };
        let Ok(done) = block_on(&self.runtime, work) else {
            panic!(
                "the pipeline waits for what never happens: look for a handler without a timeout, and for the faults `Hang` \
                 and `HangAfter` on calls that nothing limits; connections outside of the scenario need `in_real_time`\n{}",
                self.history()
            );
        };
        if let (None, Some(faults)) = (&done, &self.faults) {
            self.faults = Some(faults.restart());
        }
        done
    }
}
