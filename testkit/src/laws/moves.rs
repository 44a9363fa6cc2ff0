//! The disturbances between a projector's events, drawn for each of them.
use super::{
    deliveries::Delivery,
    projector::{Maker, Rows},
    written::expression,
};
use foldstream::{
    StreamId, Version,
    runner::{EventContext, EventSource, HandlerError, ModelId, Position, Projector},
};
use proptest::{prelude::*, sample::Index};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Debug, Write as _},
};

/// The disturbances around one event. Each of them shrinks to nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    /// Picks the stream whose event is next.
    pick: Index,
    /// Delivers the event a second time.
    again: bool,
    /// Makes the buffered events durable.
    flush: bool,
    /// Ends the process, and lets another process take over.
    crash: bool,
    /// Applies an earlier event of the stream once more.
    late: Option<Index>,
    /// Gives the event to another process too, which writes at the very end.
    zombie: bool,
}

impl Noise {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let late = proptest::option::of(any::<Index>());
        (any::<Index>(), flags, late).prop_map(|(pick, (again, flush, crash, zombie), late)| Self {
            pick,
            again,
            flush,
            crash,
            late,
            zombie,
        })
    }
}

/// The laws of a projector. Each names the disturbances that must not change its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Law {
    Interleaving,
    Batches,
    Duplicates,
    Restarts,
    Late,
    Zombies,
    All,
}

impl Law {
    /// The order of the checks: first each disturbance alone, at the end all of them together.
    pub(super) const ORDER: [Self; 7] = [
        Self::Interleaving,
        Self::Batches,
        Self::Duplicates,
        Self::Restarts,
        Self::Late,
        Self::Zombies,
        Self::All,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Interleaving => "the interleaving of streams does not matter",
            Self::Batches => "it does not matter when rows are made durable",
            Self::Duplicates => "a duplicate changes nothing",
            Self::Restarts => "a restart at any point changes nothing",
            Self::Late => "an older version applied late changes nothing",
            Self::Zombies => "a process that has lost its partition changes nothing",
            Self::All => {
                "duplicates, restarts, late events and interleavings together change nothing"
            }
        }
    }

    fn is(self, other: Self) -> bool {
        self == other || self == Self::All
    }
}

/// One step of a delivery, as a failure prints it.
enum Told {
    Next(usize),
    Again(usize),
    Late(usize),
    Flush,
    Crash,
    Zombie(usize),
}

/// A projector that receives events under one law.
pub(super) struct Drive<'a, P: Projector, M> {
    model: M,
    process: P,
    make: &'a Maker<P, M>,
    id: ModelId,
    law: Law,
    /// The last version that the process received, per stream, and the last version that is
    /// durable.
    seen: BTreeMap<StreamId, Version>,
    durable: BTreeMap<StreamId, Version>,
    deliveries: &'a [Delivery<P::Events>],
    told: Vec<Told>,
}

/// The failure of a law, before it is made into a message.
pub(super) struct Failed {
    pub(super) why: String,
    pub(super) moves: Vec<String>,
    pub(super) test: Vec<String>,
}

impl<'a, P: Projector, M> Drive<'a, P, M> {
    pub(super) fn new(
        law: Law,
        model: M,
        make: &'a Maker<P, M>,
        deliveries: &'a [Delivery<P::Events>],
    ) -> Self {
        Self {
            process: make(&model),
            model,
            make,
            id: ModelId::new(P::NAME, 1),
            law,
            seen: BTreeMap::new(),
            durable: BTreeMap::new(),
            deliveries,
            told: Vec::new(),
        }
    }

    /// Delivers every event, with the disturbances that the law allows, and returns the rows.
    pub(super) async fn rows<R>(
        mut self,
        noise: &[Noise],
        rows: &Rows<M, R>,
    ) -> Result<(R, Self), Failed> {
        match self.run(noise).await {
            Ok(()) => Ok((rows(&self.model).await, self)),
            Err(error) => Err(self.failed(shown(&error))),
        }
    }

    async fn run(&mut self, noise: &[Noise]) -> Result<(), HandlerError> {
        let mut left: Vec<usize> = (0..self.deliveries.len()).collect();
        let mut zombies = Vec::new();
        for step in 0..self.deliveries.len() {
            let noise = noise.get(step);
            let is = |law, asks: fn(&Noise) -> bool| self.law.is(law) && noise.is_some_and(asks);
            let (again, flush) = (
                is(Law::Duplicates, |n| n.again),
                is(Law::Batches, |n| n.flush),
            );
            let (crash, zombie) = (
                is(Law::Restarts, |n| n.crash),
                is(Law::Zombies, |n| n.zombie),
            );
            // Without a flush now and then, a restart would always begin at the first event.
            let flush = flush || is(Law::Restarts, |n| n.flush);
            let pick = noise
                .filter(|_| self.law.is(Law::Interleaving))
                .map(|n| n.pick);
            let at = self.next_of(&left, pick);
            left.retain(|other| *other != at);
            if zombie {
                self.told.push(Told::Zombie(at));
                let process = (self.make)(&self.model);
                let delivery = &self.deliveries[at];
                // As every process does, this one starts after the position and skips no event.
                for at in self
                    .after_position(&process, delivery.stream(), delivery.version())
                    .await?
                {
                    self.take(&process, at).await?;
                }
                zombies.push(process);
            }
            self.deliver(at).await?;
            if again {
                self.told.push(Told::Again(at));
                self.take(&self.process, at).await?;
            }
            if flush {
                self.flush().await?;
            }
            if crash {
                self.crash().await?;
            }
            let late = noise
                .filter(|_| self.law.is(Law::Late))
                .and_then(|n| n.late);
            if let Some(older) = late.and_then(|late| self.older(at, late)) {
                self.told.push(Told::Late(older));
                self.take(&self.process, older).await?;
            }
        }
        self.process.flush(&self.id).await?;
        for zombie in zombies {
            zombie.flush(&self.id).await?;
        }
        Ok(())
    }

    /// Returns the first remaining event of the picked stream, or without a pick the next event in
    /// the order in which they happened.
    fn next_of(&self, left: &[usize], pick: Option<Index>) -> usize {
        let mut firsts: Vec<usize> = Vec::new();
        for at in left {
            let stream = self.deliveries[*at].stream();
            if !firsts
                .iter()
                .any(|f| self.deliveries[*f].stream() == stream)
            {
                firsts.push(*at);
            }
        }
        pick.map_or(firsts[0], |pick| *pick.get(&firsts))
    }

    /// Returns an earlier event of the same stream.
    fn older(&self, at: usize, late: Index) -> Option<usize> {
        let (stream, version) = (self.deliveries[at].stream(), self.deliveries[at].version());
        let older = self.deliveries.iter().enumerate();
        let older: Vec<usize> = older
            .filter(|(_, d)| d.stream() == stream && d.version() < version)
            .map(|(at, _)| at)
            .collect();
        (!older.is_empty()).then(|| *late.get(&older))
    }

    async fn take(&self, process: &P, at: usize) -> Result<(), HandlerError> {
        let delivery = &self.deliveries[at];
        let header = delivery.header.clone();
        let ctx = EventContext::new(self.id.clone(), header, EventSource::History);
        process.project(&delivery.event, &ctx).await
    }

    async fn deliver(&mut self, at: usize) -> Result<(), HandlerError> {
        self.told.push(Told::Next(at));
        self.take(&self.process, at).await?;
        let delivery = &self.deliveries[at];
        self.seen
            .insert(delivery.stream().clone(), delivery.version());
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), HandlerError> {
        self.told.push(Told::Flush);
        self.process.flush(&self.id).await?;
        self.durable.clone_from(&self.seen);
        Ok(())
    }

    /// Lets another process take over. It receives again every event that the position does not
    /// cover.
    async fn crash(&mut self) -> Result<(), HandlerError> {
        self.told.push(Told::Crash);
        self.process = (self.make)(&self.model);
        for (stream, seen) in self.seen.clone() {
            for at in self.after_position(&self.process, &stream, seen).await? {
                self.told.push(Told::Again(at));
                self.take(&self.process, at).await?;
            }
        }
        Ok(())
    }

    /// Delivers the events of a stream after its position, up to a version.
    async fn after_position(
        &self,
        process: &P,
        stream: &StreamId,
        last: Version,
    ) -> Result<Vec<usize>, HandlerError> {
        let position = match process.position(&self.id, stream).await? {
            Position::Stored { version, .. } => version,
            // The runner's own position became durable only after the last flush.
            _ => self.durable.get(stream).copied().unwrap_or(Version::NONE),
        };
        let events = self.deliveries.iter().enumerate();
        let after = events.filter(|(_, delivery)| {
            let version = delivery.version();
            delivery.stream() == stream && position < version && version <= last
        });
        Ok(after.map(|(at, _)| at).collect())
    }

    /// Resets the model, and returns the rows that are left, including those of events that were
    /// only buffered.
    pub(super) async fn reset<R>(&self, rows: &Rows<M, R>) -> Result<R, Failed> {
        let emptied = async {
            self.process.reset(&self.id).await?;
            self.process.flush(&self.id).await
        };
        match emptied.await {
            Ok(()) => Ok(rows(&self.model).await),
            Err(error) => Err(self.failed(shown(&error))),
        }
    }

    /// Returns what is wrong with a position that a process reads when it starts now: an event that
    /// no process has had is before it, and a runner would leave that event out.
    pub(super) async fn wrong_position(&self) -> Result<Option<String>, Failed> {
        let process = (self.make)(&self.model);
        let mut looked_at = BTreeSet::new();
        for stream in self.deliveries.iter().map(Delivery::stream) {
            if !looked_at.insert(stream) {
                continue;
            }
            let position = process.position(&self.id, stream).await;
            let position = position.map_err(|error| self.failed(shown(&error)))?;
            let seen = self.seen.get(stream).copied().unwrap_or(Version::NONE);
            if let Position::Stored { version, .. } = position
                && version > seen
            {
                return Ok(Some(format!(
                    "the position of {stream}: version {version}, where the model has the events up to {seen}"
                )));
            }
        }
        Ok(None)
    }

    /// Returns the same events over the same model, from the first event.
    pub(super) fn again(self) -> Self {
        Self {
            seen: BTreeMap::new(),
            durable: BTreeMap::new(),
            told: Vec::new(),
            ..self
        }
    }

    pub(super) fn failed(&self, why: String) -> Failed {
        Failed {
            why,
            moves: self.moves(),
            test: self.test(),
        }
    }

    fn named(&self, at: usize) -> String {
        let delivery = &self.deliveries[at];
        format!(
            "{} {}: {}",
            delivery.stream(),
            delivery.version(),
            delivery.shown
        )
    }

    fn moves(&self) -> Vec<String> {
        let line = |told: &Told| match told {
            Told::Next(at) => self.named(*at),
            Told::Again(at) => format!("{}, again", self.named(*at)),
            Told::Late(at) => format!("{}, late", self.named(*at)),
            Told::Flush => "flush".into(),
            Told::Crash => "restart".into(),
            Told::Zombie(at) => format!(
                "{}, also to a process that writes at the end",
                self.named(*at)
            ),
        };
        self.told.iter().map(line).collect()
    }

    /// Returns the deliveries as a scenario of the projector.
    fn test(&self) -> Vec<String> {
        let mut test = vec!["ProjectorScenario::new(projector, rows)".to_owned()];
        for told in &self.told {
            let (at, is_next, step) = match told {
                Told::Next(at) => (*at, true, "when"),
                Told::Again(at) => (*at, false, "when_delivered"),
                Told::Late(at) | Told::Zombie(at) => (*at, false, "when_applied_late"),
                // Each step of a scenario has its own process, which flushes at the end.
                Told::Flush | Told::Crash => continue,
            };
            // The lost process receives the event before every other process, but a scenario can
            // show it only afterwards.
            if matches!(told, Told::Zombie(_)) {
                continue;
            }
            let delivery = &self.deliveries[at];
            // Typed events already name their aggregate type.
            let stream = if is_next {
                delivery.stream().id()
            } else {
                delivery.stream().as_str()
            };
            let mut line = format!("    .{step}({stream:?}, ");
            let _ = if is_next {
                write!(line, "[{}])", expression(&delivery.shown))
            } else {
                write!(line, "{})", delivery.version())
            };
            test.push(line);
            if !is_next {
                test.push("    .then_unchanged()".into());
            }
        }
        test
    }
}

fn shown(error: &HandlerError) -> String {
    let mut text = format!("{:?}: {}", error.class(), error.source());
    let mut cause = std::error::Error::source(error.source());
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

impl<P: Projector, M> Debug for Drive<'_, P, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive")
            .field("law", &self.law)
            .finish_non_exhaustive()
    }
}
