//! Publishing what is stored and running the processors, until nothing moves any more.
use super::Road;
use crate::scenario::{
    failure::chain,
    feed::{TOPIC, block_on},
};
use foldstream::{publisher::Publisher, runner::Runner};

impl Road {
    /// Publishing and running, this often in one [`run`](Self::run): listeners that cause events without end never rest.
    const MAX_ROUNDS: usize = 200;

    /// Publishes what is stored and runs every processor, and again what listeners have caused, until nothing moves any
    /// more. A processor that halts on the way stays halted until the next run.
    ///
    /// # Panics
    /// If something cannot be published, if it never comes to rest, or if a processor has halted unnoticed before.
    #[track_caller]
    #[must_use = "a road without a `then` checks nothing"]
    pub fn run(mut self) -> Self {
        self.check_halts_seen();
        self.open();
        for entry in &mut self.processors {
            entry.report = None;
        }
        for round in 0..Self::MAX_ROUNDS {
            if self.publish() == 0 && round > 0 {
                self.has_news = false;
                return self;
            }
            self.run_processors();
        }
        panic!(
            "the road does not come to rest: after {} rounds listeners still cause events\n{}",
            Self::MAX_ROUNDS,
            self.history()
        );
    }

    /// Publishes what is given, then starts the processors: those that start now start behind it.
    #[track_caller]
    pub(super) fn open(&mut self) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.publish();
            self.run_processors();
        }
    }

    /// The answer is the number of records sent.
    #[track_caller]
    fn publish(&self) -> u64 {
        let publisher = Publisher::new(self.store.clone(), self.bus.clone(), self.control.clone())
            .with_clock(self.clock.clone())
            .with_ids(self.ids.clone());
        let report = match block_on(&self.runtime, publisher.publish_pending()) {
            Ok(report) => report,
            Err(error) => panic!("the unpublished events cannot be listed: {}", chain(&error)),
        };
        if let Some(failure) = report.failed.first() {
            panic!(
                "{} cannot be published: {}\n{}",
                failure.stream,
                chain(&failure.error),
                self.history()
            );
        }
        report.messages
    }

    /// Runs the processors that have not halted until they have dealt with what was published.
    #[track_caller]
    fn run_processors(&mut self) {
        let mut builder = Runner::builder(self.bus.clone(), self.control.clone())
            .with_topics([TOPIC])
            .with_group_prefix("road")
            .with_ids(self.ids.clone())
            .with_upcasters(self.upcasters.clone())
            .with_event_store(self.store.clone());
        let running = self
            .processors
            .iter_mut()
            .filter(|entry| entry.error().is_none());
        let mut running: Vec<_> = running.collect();
        if running.is_empty() {
            return;
        }
        for entry in &running {
            builder = (entry.add)(builder);
        }
        let runner = match builder.build() {
            Ok(runner) => runner,
            Err(error) => panic!("the processors cannot be run: {error}"),
        };
        let reports = block_on(&self.runtime, runner.run_until_caught_up()).processors;
        for (entry, report) in running.iter_mut().zip(reports) {
            entry.is_halt_seen = false;
            entry.add_report(report);
        }
    }
}
