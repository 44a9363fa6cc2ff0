//! A process that replays read models, and may be killed at any time.
use crate::{WorkerSettings, effects};
use foldstream::{
    publisher::TopicRoute,
    replay::{Replay, ReplayError, ReplayProgress, ReplayReport, RunId},
    runner::Runner,
};
use futures::StreamExt as _;
use std::{num::NonZeroU32, time::Duration};

/// The progress of a replay as one of its processes has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The process.
    pub process: u32,
    /// The number of events that were durable.
    pub events: u64,
    /// The number of segments that were done.
    pub segments: u32,
}

impl Step {
    /// Reads all steps so far.
    ///
    /// # Panics
    /// If the file is not one of steps.
    pub fn read(settings: &WorkerSettings) -> Vec<Self> {
        let text = std::fs::read_to_string(settings.progress()).unwrap_or_default();
        text.lines().map(Self::parse).collect()
    }
    fn parse(line: &str) -> Self {
        let parts: Vec<&str> = line.split(' ').collect();
        let [process, events, segments] = parts[..] else {
            panic!("not a step: {line:?}");
        };
        Self {
            process: process.parse().unwrap(),
            events: events.parse().unwrap(),
            segments: segments.parse().unwrap(),
        }
    }
    fn line(progress: &ReplayProgress) -> String {
        let (process, events) = (std::process::id(), progress.events);
        format!("{process} {events} {}", progress.segments_done)
    }
}

/// Replays every projector of the runner. If a process before has left the id of its replay, this
/// one goes on with that replay. So does it after a pause of the machine in which its lease has
/// expired, as a process that is started again would.
///
/// The scan is so slow that a test can kill the process on the way.
pub(crate) async fn run(settings: &WorkerSettings, runner: &Runner) {
    loop {
        match replay(settings, runner).await {
            Err(error @ ReplayError::LeaseExpired { .. }) => {
                tracing::warn!(error = foldstream::chain(&error), "the replay is resumed");
            }
            report => {
                tracing::info!(report = ?report.unwrap(), "the scan is whole");
                return;
            }
        }
    }
}

async fn replay(settings: &WorkerSettings, runner: &Runner) -> Result<ReplayReport, ReplayError> {
    let route = TopicRoute::One(settings.name.as_str().into());
    let replay = Replay::all(runner)
        .with_route(route)
        .with_segments(4)
        .with_page(NonZeroU32::new(20).unwrap())
        .with_checkpoint_interval(Duration::from_millis(200))
        .with_lease(Duration::from_secs(10))
        .with_read_units_per_second(25.0);
    let handle = match std::fs::read_to_string(settings.replay()) {
        Ok(run) => replay.resume(run.parse::<RunId>().unwrap()).await?,
        Err(_) => {
            let handle = replay.start().await?;
            std::fs::write(settings.replay(), handle.run().to_string()).unwrap();
            handle
        }
    };
    let (file, mut progress) = (effects::append_to(&settings.progress()), handle.progress());
    let telling = async {
        while let Some(progress) = progress.next().await {
            effects::add_line(&file, Step::line(&progress));
        }
    };
    let (report, ()) = tokio::join!(handle.wait(), telling);
    report
}
