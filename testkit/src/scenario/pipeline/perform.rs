//! Steps of a pipeline that run the user's own code.
use super::PipelineScenario;
use crate::scenario::{failure::with_history, feed::block_on, ports::Ports};
use foldstream::{BoxError, chain};
use std::time::Duration;

impl PipelineScenario {
    /// The longest time that a step or run may take on the paused clock. One that nothing can end
    /// reaches it at once.
    pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Runs the user's code on the ports of the pipeline.
    ///
    /// Use it for a function of a service that executes commands in its own way, takes several
    /// repositories, or does something else for which the pipeline has no step. The code runs on
    /// the pipeline's runtime with its paused time, so timeouts and sleeps take none.
    /// [Faults](Self::with_faults) do not affect it. The next [`run`](Self::run) publishes what the
    /// code stores. An `Err` fails the test with all its sources and the history, so assert an
    /// expected error in the closure.
    ///
    /// # Panics
    /// - If the closure returns an error or panics, with the message and the history.
    /// - If the closure waits for something that nothing in the scenario does, such as a projection
    ///   that only `run` would update.
    /// - If a processor has halted and the test has not asserted it.
    ///
    /// # Example
    /// ```
    /// # use foldstream::{Aggregate, BoxError, Context, Decide, Decision};
    /// # use foldstream::{DomainEvent, Repository, id};
    /// # use std::convert::Infallible;
    /// # id!(SeatId);
    /// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// # #[event(aggregate = "seat")]
    /// # enum SeatEvent { Taken { by: String } }
    /// # use SeatEvent::Taken;
    /// # #[derive(Clone, Default)]
    /// # struct Seat { by: Option<String> }
    /// # impl Aggregate for Seat {
    /// #     type Id = SeatId;
    /// #     type Event = SeatEvent;
    /// #     fn evolve(&mut self, Taken { by }: &SeatEvent) { self.by = Some(by.clone()); }
    /// # }
    /// # struct Take { by: String }
    /// # #[derive(Debug, PartialEq, thiserror::Error)]
    /// # #[error("the seat is taken")]
    /// # struct IsTaken;
    /// # impl Decide<Take> for Seat {
    /// #     type Error = IsTaken;
    /// #     fn decide(&self, command: &Take, _: &Context) -> Decision<Self, IsTaken> {
    /// #         if self.by.is_some() { return Err(IsTaken); }
    /// #         Ok(vec![Taken { by: command.by.clone() }])
    /// #     }
    /// # }
    /// use foldstream_testkit::PipelineScenario;
    ///
    /// /// A function of the service: takes the first free seat of a row.
    /// async fn book(seats: &Repository<Seat>, by: &str) -> Result<SeatId, BoxError> {
    ///     for number in 1..=3 {
    ///         let seat = SeatId::from(format!("row-1-{number}"));
    ///         if seats.execute(&seat, Take { by: by.into() }).await.is_ok() {
    ///             return Ok(seat);
    ///         }
    ///     }
    ///     Err("the row is full".into())
    /// }
    ///
    /// PipelineScenario::new()
    ///     .given::<Seat>("row-1-1", [Taken { by: "ann".into() }])
    ///     .perform(async |ports| {
    ///         let seat = book(&ports.repository(), "bob").await?;
    ///         assert_eq!(seat.as_str(), "row-1-2");
    ///         Ok(())
    ///     })
    ///     .then_events::<Seat>("row-1-2", [Taken { by: "bob".into() }]);
    /// ```
    #[track_caller]
    #[must_use = "a pipeline without a `then` checks nothing"]
    pub fn perform(mut self, work: impl AsyncFnOnce(Ports) -> Result<(), BoxError>) -> Self {
        self.check_halts_seen();
        self.open();
        let work = work(self.ports.clone());
        let done = with_history(
            || block_on(&self.runtime, self.in_time(work)),
            || self.history(),
        );
        if let Err(error) = done {
            panic!("a step failed: {}\n{}", chain(&*error), self.history());
        }
        self.has_news = true;
        self
    }

    /// Waits for a step, unless nothing is left that could end it.
    async fn in_time(
        &self,
        work: impl Future<Output = Result<(), BoxError>>,
    ) -> Result<(), BoxError> {
        if !self.is_paused {
            return work.await;
        }
        match tokio::time::timeout(Self::LONGEST, work).await {
            Ok(done) => done,
            Err(_) => Err("it waits for what never happens: nothing else runs during a step, and the paused clock does not \
                 wait for threads or connections outside of the scenario, for which there is `in_real_time`"
                .into()),
        }
    }
}
