//! States that would not be read back from their snapshot.
use super::*;
use foldstream::Snapshot;

/// Any value as a state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    float: f64,
    perhaps: Option<f64>,
    nested: Option<Option<u8>>,
    map: HashMap<u32, u32>,
    set: HashSet<u32>,
    #[serde(skip)]
    skipped: u8,
}
impl Aggregate for State {
    type Id = OddId;
    type Event = OddEvent;
    fn evolve(&mut self, event: &OddEvent) {
        match event {
            OddEvent::Listed { items } if items[0] == 0 => self.float = f64::NAN,
            OddEvent::Listed { items } if items[0] == 1 => self.perhaps = Some(f64::NAN),
            OddEvent::Listed { items } if items[0] == 2 => self.nested = Some(None),
            OddEvent::Listed { items } if items[0] == 3 => self.skipped = 1,
            _ => {
                self.map.extend((0..100).map(|n| (n, n)));
                self.set.extend(0..100);
            }
        }
    }
}
impl Snapshot for State {
    const STATE_VERSION: u32 = 1;
    fn equals_decoded(&self, decoded: &Self) -> bool {
        self == decoded
    }
}
/// The same state without a comparison of its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Plain(State);
impl Aggregate for Plain {
    type Id = OddId;
    type Event = OddEvent;
    fn evolve(&mut self, event: &OddEvent) {
        self.0.evolve(event);
    }
}
impl Snapshot for Plain {
    const STATE_VERSION: u32 = 1;
}

/// (written, failed) snapshots after one event.
async fn snapshots_after<A: Snapshot<Id = OddId, Event = OddEvent>>(item: u8) -> (u64, u64) {
    let snapshots = InMemorySnapshotStore::new();
    let states = Repository::<A>::new(InMemoryEventStore::new())
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(1));
    let id = OddId::from("x");
    let event = OddEvent::Listed { items: vec![item] };
    states
        .append(&id, ExpectedVersion::Any, &[event])
        .await
        .unwrap();
    states.load(&id).await.unwrap();
    states.close().await;
    let counted = states.metrics().snapshots;
    let stream = StreamId::new("odd", "x").unwrap();
    let stored = snapshots.load(&stream).await.unwrap();
    assert_eq!(u64::from(stored.is_some()), counted.written);
    (counted.written, counted.failed)
}

#[tokio::test]
async fn a_state_that_would_not_be_read_back_has_no_snapshot() {
    for item in [0, 1, 2, 3] {
        assert_eq!(snapshots_after::<State>(item).await, (0, 1), "{item}");
    }
    for item in [0, 1, 2] {
        assert_eq!(snapshots_after::<Plain>(item).await, (0, 1), "{item}");
    }
    // What is not serialized cannot be seen without a comparison of the type's own.
    assert_eq!(snapshots_after::<Plain>(3).await, (1, 0));
}

#[tokio::test]
async fn a_state_with_maps_and_sets_in_any_order_has_its_snapshot() {
    assert_eq!(snapshots_after::<State>(9).await, (1, 0));
    assert_eq!(snapshots_after::<Plain>(9).await, (1, 0));
}
