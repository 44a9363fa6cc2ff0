//! [`RunnerHandle`]: processors that run, and what can be asked of them meanwhile.
use super::{
    OnHalt, ReadModels, RunnerBuilder, RunnerError, RunnerHealth, RunnerReport,
    attempt::panic_message, driver::Live, generations::Supervisor,
};
use crate::control::InstanceId;
use futures::FutureExt;
use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Processors that run: [`Runner::start`](super::Runner::start).
///
/// Dropping the handle ends the processors at once, as a crash would: nothing is lost, and what was
/// not committed comes again. [`stop`](Self::stop) and then [`wait`](Self::wait) end them in order.
///
/// # Example
/// A service that answers probes while its processors run:
/// ```
/// # use foldstream::{DomainEvent, runner::{EventContext, HandlerResult, Listener, Runner}};
/// # use foldstream_testkit::{InMemoryControlStore, InMemoryMessageBus};
/// # use std::time::Duration;
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "order")]
/// # enum OrderEvent { Placed {} }
/// # struct Mailer;
/// # impl Listener for Mailer {
/// #     const NAME: &'static str = "mailer";
/// #     type Events = OrderEvent;
/// #     async fn handle(&self, _: &OrderEvent, _: &EventContext) -> HandlerResult { Ok(()) }
/// # }
/// # let mut runtime = tokio::runtime::Builder::new_current_thread();
/// # runtime.enable_time().start_paused(true).build()?.block_on(async {
/// # let bus = InMemoryMessageBus::new();
/// # bus.create_topic("GlobalEvents", 1);
/// let runner = Runner::builder(bus, InMemoryControlStore::new(), "shop")
///     .listener(Mailer)
///     .build()?;
/// let handle = runner.start();
/// tokio::time::sleep(Duration::from_secs(5)).await;
/// // The answers to HTTP probes.
/// assert!(handle.health().readiness().is_ok());
/// assert!(handle.health().liveness().is_ok());
///
/// handle.stop();
/// handle.wait().await.into_result()?;
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
pub struct RunnerHandle {
    shared: Arc<RunnerBuilder>,
    instance: InstanceId,
    until_caught_up: bool,
    stop: CancellationToken,
    slots: Vec<Slot>,
}

/// One processor: its live state, and the task that works on it.
struct Slot {
    live: Arc<Live>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The error returned when a processor cannot be started again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// The runner has no processor of this name.
    #[error("there is no processor {processor:?}: the runner has {known:?}")]
    Unknown {
        /// The name that was given.
        processor: String,
        /// The names of the processors.
        known: Vec<Arc<str>>,
    },
    /// The processor has not halted.
    #[error("processor {processor} has not halted: only a halted processor is started anew")]
    Running {
        /// The processor.
        processor: Arc<str>,
    },
    /// The runner was told to stop.
    #[error("processor {processor} is not started anew: the runner was told to stop")]
    Stopping {
        /// The processor.
        processor: Arc<str>,
    },
}

impl fmt::Debug for RunnerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states = self.slots.iter().map(|slot| {
            let health = slot.live.health();
            (health.name, health.state)
        });
        f.debug_struct("RunnerHandle")
            .field("processors", &states.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl RunnerHandle {
    pub(super) fn new(shared: Arc<RunnerBuilder>, until_caught_up: bool) -> Self {
        let slots = shared.entries.iter().map(|entry| {
            let (name, clock) = (entry.name.clone(), shared.clock.clone());
            Slot {
                live: Arc::new(Live::new(name, clock, shared.shutdown_timeout)),
                task: Mutex::default(),
            }
        });
        let handle = Self {
            slots: slots.collect(),
            instance: InstanceId::from_u128(shared.ids.commit_id().as_u128()),
            stop: CancellationToken::new(),
            until_caught_up,
            shared,
        };
        for at in 0..handle.slots.len() {
            handle.spawn(at);
        }
        handle
    }

    /// Starts the task of a processor.
    fn spawn(&self, at: usize) {
        let (Some(entry), Some(slot)) = (self.shared.entries.get(at), self.slots.get(at)) else {
            return;
        };
        let supervisor = Supervisor::new(
            entry,
            &self.shared,
            self.instance,
            slot.live.clone(),
            self.until_caught_up,
        );
        let guard = EndGuard(Some((slot.live.clone(), entry.name.clone())));
        let stop = self.stop.clone();
        let task = tokio::spawn(supervise(supervisor, guard, stop, self.shared.on_halt));
        let mut slot = slot.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = slot.replace(task) {
            before.abort();
        }
    }

    /// Returns the counts of all processors, and the errors of those that have halted.
    ///
    /// The counts go on after a [`restart`](Self::restart).
    pub fn report(&self) -> RunnerReport {
        RunnerReport {
            processors: self.slots.iter().map(|slot| slot.live.report()).collect(),
        }
    }

    /// Returns the state of all processors. It is at most a second old, and costs no request.
    pub fn health(&self) -> RunnerHealth {
        RunnerHealth::new(self.slots.iter().map(|slot| slot.live.health()))
    }

    /// Returns access to the read models of the projectors, for those who query them.
    pub fn read_models(&self) -> ReadModels {
        ReadModels::new(self.shared.clone())
    }

    /// Tells every processor to finish what is in hand, commit and leave its group, within
    /// [`RunnerBuilder::with_shutdown_timeout`]. [`wait`](Self::wait) tells when they have.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Starts a processor again that has halted, from the offset that its group has committed. The
    /// other processors are not touched.
    ///
    /// # Errors
    /// - [`RestartError::Unknown`] if no processor has this name.
    /// - [`RestartError::Running`] if the processor has not halted.
    /// - [`RestartError::Stopping`] if the runner was told to stop.
    ///
    /// # Panics
    /// If it is called outside a tokio runtime.
    pub fn restart(&self, processor: &str) -> Result<(), RestartError> {
        let at = (self.shared.entries.iter()).position(|entry| &*entry.name == processor);
        let Some((at, slot)) = at.and_then(|at| Some((at, self.slots.get(at)?))) else {
            return Err(RestartError::Unknown {
                processor: processor.into(),
                known: self.shared.entries.iter().map(|e| e.name.clone()).collect(),
            });
        };
        let processor: Arc<str> = processor.into();
        if self.stop.is_cancelled() {
            return Err(RestartError::Stopping { processor });
        }
        // Of two callers, one finds the processor halted.
        if !slot.live.restarted() {
            return Err(RestartError::Running { processor });
        }
        tracing::info!(%processor, "the processor is started anew");
        self.spawn(at);
        Ok(())
    }

    /// Waits until every processor has stopped or halted, and returns the
    /// [`report`](Self::report). A processor that is started again meanwhile is waited for.
    ///
    /// Dropping the future stops nothing.
    pub async fn wait(&self) -> RunnerReport {
        while let Some(slot) = self.slots.iter().find(|slot| !slot.live.has_ended()) {
            slot.live.wait().await;
        }
        self.report()
    }
}

impl Drop for RunnerHandle {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            // Nobody is left to see how the task ends.
            slot.live.dismiss();
            let task = slot.task.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Some(task) = task.take() {
                task.abort();
            }
        }
    }
}

/// Runs a processor until it has ended.
async fn supervise(
    supervisor: Supervisor,
    mut guard: EndGuard,
    stop: CancellationToken,
    on_halt: OnHalt,
) {
    let ended = AssertUnwindSafe(supervisor.run(stop.clone())).catch_unwind();
    match ended.await {
        Ok(()) => guard.disarm(),
        Err(panic) => {
            guard.end(panic_message("supervisor", &*panic));
            if on_halt == OnHalt::StopAll {
                stop.cancel();
            }
        }
    }
}

/// Notes the end of a task that is dropped before its end, also before its start: the runtime may
/// end before the processor does, and then nobody else says so.
struct EndGuard(Option<(Arc<Live>, Arc<str>)>);
impl EndGuard {
    /// Leaves the end to the supervisor, which has noted it.
    fn disarm(&mut self) {
        self.0 = None;
    }
    fn end(&mut self, reason: String) {
        if let Some((live, processor)) = self.0.take()
            && !live.has_ended()
        {
            tracing::error!(%processor, reason, "the processor has halted");
            live.ended(Err(RunnerError::Broken { processor, reason }));
        }
    }
}
impl Drop for EndGuard {
    fn drop(&mut self) {
        self.end("its task was aborted".into());
    }
}
