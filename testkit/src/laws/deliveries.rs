//! Histories of several streams, made by aggregates, as a projector receives them.
use super::{command::AnyCommand, ids};
use crate::{InMemoryEventStore, ManualClock, SeededIds};
use foldstream::{
    Aggregate, Decoded, DomainEvent, EventHeader, EventSet, Metadata, Repository, StreamId,
    Upcasters, Version, chain,
    ports::{EventStore, ReadFrom},
};
use futures::{TryStreamExt, future::LocalBoxFuture};
use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// The store and the repositories that histories are written with.
pub(super) struct World {
    store: Arc<InMemoryEventStore>,
    clock: Arc<ManualClock>,
    ids: Arc<SeededIds>,
    upcasters: Upcasters,
    /// Chooses which of the ids the streams have.
    choice: u64,
}

/// The `Debug` output of one command's events, and the place at which they are stored.
pub(super) struct Written {
    stream: StreamId,
    events: Vec<String>,
}

type Run = dyn Fn(Rc<World>) -> LocalBoxFuture<'static, Result<Option<Written>, String>>;

/// One command to one of the streams of an aggregate type.
#[derive(Clone)]
pub(super) struct Write {
    shown: String,
    run: Rc<Run>,
}

impl Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Write {
    /// Creates a command to the stream of this number, which has one of the ids.
    pub(super) fn new<A: Aggregate>(
        ids: Rc<[A::Id]>,
        stream: u8,
        command: Arc<dyn AnyCommand<A>>,
    ) -> Self {
        let shown = format!("{stream} {command:?}");
        let run = move |world: Rc<World>| {
            let command = command.clone();
            let id = ids[ids::place(world.choice, ids.len(), stream.into())].clone();
            let written = async move {
                let repository = Repository::<A>::new(world.store.clone())
                    .with_upcasters(world.upcasters.clone())
                    .with_clock(world.clock.clone())
                    .with_ids(world.ids.clone());
                let stream = Repository::<A>::stream_id(&id).map_err(|e| e.to_string())?;
                let told = command.execute(&repository, &id, Metadata::new()).await;
                Ok(told.into_events()?.map(|events| Written {
                    stream,
                    events: events.iter().map(|e| format!("{e:?}")).collect(),
                }))
            };
            Box::pin(written) as LocalBoxFuture<'static, _>
        };
        Self {
            shown,
            run: Rc::new(run),
        }
    }
}

/// One event on its way to a projector.
#[derive(Clone)]
pub(super) struct Delivery<E> {
    pub(super) header: EventHeader,
    pub(super) event: E,
    /// The `Debug` output of the event as its aggregate's own event type.
    pub(super) shown: String,
}

impl<E> Delivery<E> {
    pub(super) const fn stream(&self) -> &StreamId {
        &self.header.stream
    }
    pub(super) const fn version(&self) -> Version {
        self.header.version
    }
}

/// Executes the commands, and returns the events that a projector of `E` receives, in the order in
/// which they happened.
pub(super) async fn deliveries<E: EventSet>(
    writes: &[Write],
    choice: u64,
    upcasters: &Upcasters,
) -> Result<Vec<Delivery<E>>, String> {
    let world = Rc::new(World {
        store: InMemoryEventStore::new(),
        clock: ManualClock::new(),
        ids: SeededIds::new(1),
        upcasters: upcasters.clone(),
        choice,
    });
    let mut shown: BTreeMap<StreamId, Vec<String>> = BTreeMap::new();
    for write in writes {
        world.clock.advance(Duration::from_secs(1));
        if let Some(written) = (write.run)(world.clone()).await? {
            shown
                .entry(written.stream)
                .or_default()
                .extend(written.events);
        }
    }
    let upcasters = foldstream::adapter::upcasters_of::<E>(upcasters).map_err(|e| chain(&e))?;
    let mut all = Vec::new();
    for (stream, shown) in shown {
        let from = ReadFrom::Event(Version::new(1));
        let commits: Vec<_> = world
            .store
            .read(&stream, from, None)
            .try_collect()
            .await
            .map_err(|e| chain(&e))?;
        let recorded = commits.iter().flat_map(foldstream::ports::Commit::recorded);
        for (recorded, shown) in recorded.zip(shown) {
            let header = recorded.header;
            let aggregate = stream.aggregate();
            let lifted = upcasters
                .apply(
                    aggregate,
                    &header.name,
                    header.schema_version,
                    &recorded.payload,
                )
                .map_err(|e| chain(&e))?;
            let Some(lifted) = lifted else { continue };
            let decoded = E::decode_from(
                aggregate,
                &lifted.name,
                lifted.schema_version,
                &lifted.payload,
            );
            if let Decoded::Event(event) = decoded.map_err(|e| chain(&e))? {
                all.push(Delivery {
                    header,
                    event,
                    shown,
                });
            }
        }
    }
    all.sort_by_key(|delivery| delivery.header.recorded_at);
    Ok(all)
}

/// Returns true if histories of this aggregate contain events for a projector of `E`.
pub(super) fn is_subscribed<A: Aggregate, E: EventSet>() -> bool {
    let wanted = E::selectors();
    wanted.iter().any(|s| s.aggregate == A::Event::AGGREGATE)
}
