//! Nothing is stored that cannot be read back, or that the fold does not take.
use super::*;
use bytes::Bytes;
use foldstream::ports::{ControlStore, RangeQuery};
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, EventType, Opened, PayloadCodec,
    PayloadCodecs, PayloadContext, PayloadError, Sealed, Snapshot, StreamId, Transaction, chain,
    id,
};
use foldstream_testkit::InMemoryControlStore;
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
};

id!(OddId);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tree(Vec<Tree>);
fn tree(depth: usize) -> Tree {
    (0..depth).fold(Tree(vec![]), |inner, _| Tree(vec![inner]))
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Big {
    big: u128,
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Keys { by: BTreeMap<u32, u8> },
    Big { big: u128 },
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Small(u8),
    Large(u64),
}
/// Written, but refused by its own reader.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Even(u8);
impl<'de> Deserialize<'de> for Even {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u8::deserialize(deserializer)?;
        assert!(value % 2 == 0, "the secret is {value}");
        Ok(Self(value))
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "odd")]
enum OddEvent {
    Measured {
        value: f64,
    },
    Perhaps {
        value: Option<f64>,
    },
    Listed {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        items: Vec<u8>,
    },
    Big {
        #[serde(flatten)]
        big: Big,
    },
    Open {
        id: String,
        #[serde(flatten)]
        rest: BTreeMap<String, String>,
    },
    Grown(Tree),
    Tagged(Tagged),
    Untagged(Untagged),
    Skipped {
        #[serde(skip)]
        secret: u8,
    },
    Nested {
        value: Option<Option<u8>>,
    },
    Unit {
        nothing: Option<()>,
    },
    Pairs {
        by: BTreeMap<(u8, u8), u8>,
    },
    Even(Even),
    Counted {
        by: u8,
    },
    Mapped {
        by: HashMap<String, u8>,
        all: HashSet<u32>,
    },
}
use OddEvent::Counted;

#[derive(Clone, Debug, Default, PartialEq)]
struct Odd(Vec<OddEvent>);
impl Aggregate for Odd {
    type Id = OddId;
    type Event = OddEvent;
    fn evolve(&mut self, event: &OddEvent) {
        match event {
            Counted { by } | OddEvent::Skipped { secret: by } => {
                assert!(*by != 99, "99 is too much");
            }
            _ => {}
        }
        self.0.push(event.clone());
    }
}
struct Do(Vec<OddEvent>);
impl Decide<Do> for Odd {
    type Error = Infallible;
    fn decide(&self, command: &Do, _: &Context) -> Decision<Self, Infallible> {
        Ok(command.0.clone())
    }
}

fn unreadable() -> Vec<OddEvent> {
    let nan_with_payload = f64::from_bits(f64::NAN.to_bits() | 1);
    vec![
        OddEvent::Measured { value: f64::NAN },
        OddEvent::Measured {
            value: nan_with_payload,
        },
        OddEvent::Measured {
            value: f64::INFINITY,
        },
        OddEvent::Perhaps {
            value: Some(f64::NAN),
        },
        OddEvent::Perhaps {
            value: Some(f64::NEG_INFINITY),
        },
        OddEvent::Listed { items: vec![] },
        OddEvent::Big {
            big: Big { big: u128::MAX },
        },
        OddEvent::Open {
            id: "x".into(),
            rest: [("id".into(), "y".into())].into(),
        },
        OddEvent::Grown(tree(130)),
        OddEvent::Tagged(Tagged::Big { big: u128::MAX }),
        OddEvent::Tagged(Tagged::Keys {
            by: [(1, 1)].into(),
        }),
        OddEvent::Untagged(Untagged::Large(5)),
        OddEvent::Skipped { secret: 7 },
        OddEvent::Nested { value: Some(None) },
        OddEvent::Unit { nothing: Some(()) },
        OddEvent::Pairs {
            by: [((1, 2), 3)].into(),
        },
        OddEvent::Even(Even(7)),
    ]
}

fn readable() -> Vec<OddEvent> {
    vec![
        OddEvent::Measured { value: -0.0 },
        OddEvent::Measured {
            value: 0.999_999_999_999_999_9,
        },
        OddEvent::Measured {
            value: f64::MIN_POSITIVE / 4.0,
        },
        OddEvent::Perhaps { value: None },
        OddEvent::Listed { items: vec![1] },
        OddEvent::Grown(tree(120)),
        OddEvent::Untagged(Untagged::Large(500)),
        OddEvent::Untagged(Untagged::Small(5)),
        OddEvent::Skipped { secret: 0 },
        OddEvent::Nested {
            value: Some(Some(1)),
        },
        OddEvent::Mapped {
            by: (0..200).map(|n| (format!("key {n}"), n)).collect(),
            all: (0..200).collect(),
        },
    ]
}

async fn stored(store: &InMemoryEventStore, stream: StreamId) -> usize {
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    let commits: Vec<Commit> = store
        .read(&stream, start, None)
        .try_collect()
        .await
        .unwrap();
    commits.len()
}
async fn stored_odd(store: &InMemoryEventStore) -> usize {
    stored(store, StreamId::new("odd", "x").unwrap()).await
}

fn is_encode<E>(result: &Result<impl Sized, ExecuteError<E>>) -> bool {
    matches!(result, Err(ExecuteError::Codec(CodecError::Encode { .. })))
}

#[tokio::test]
async fn an_event_that_would_not_be_read_back_is_not_stored() {
    let id = OddId::from("x");
    for event in unreadable() {
        let store = InMemoryEventStore::new();
        let odd = Repository::<Odd>::new(store.clone())
            .with_cache(10)
            .with_idempotency(InMemoryControlStore::new(), Duration::from_secs(3600));
        odd.execute(&id, Do(vec![Counted { by: 1 }])).await.unwrap();
        let events = vec![Counted { by: 2 }, event.clone()];

        let done = odd.execute(&id, Do(events.clone())).await;
        assert!(is_encode(&done), "{event:?}: {done:?}");
        let once = odd
            .execute_with(
                &id,
                Do(events.clone()),
                Metadata::new().with_command_id("c"),
            )
            .await;
        assert!(is_encode(&once), "{event:?}: {once:?}");
        let transaction = Transaction::new(store.clone());
        let told = transaction.execute(&odd, &id, Do(events.clone())).await;
        assert!(is_encode(&told.map(drop)), "{event:?}");
        let appended = odd.append(&id, ExpectedVersion::Any, &events).await;
        let refused = appended.map_err(ExecuteError::<Infallible>::from);
        assert!(is_encode(&refused), "{event:?}: {refused:?}");

        assert_eq!(stored_odd(&store).await, 1, "{event:?}");
        let next = odd.execute(&id, Do(vec![Counted { by: 3 }])).await.unwrap();
        assert_eq!(next.state().0, [Counted { by: 1 }, Counted { by: 3 }]);
        assert_eq!(odd.load(&id).await.unwrap().state(), next.state());
    }
}

#[tokio::test]
async fn a_command_id_whose_events_cannot_be_stored_leaves_no_mark() {
    let control = InMemoryControlStore::new();
    let odd = Repository::<Odd>::new(InMemoryEventStore::new())
        .with_idempotency(control.clone(), Duration::from_secs(3600));
    for event in [OddEvent::Measured { value: f64::NAN }, Counted { by: 99 }] {
        let metadata = Metadata::new().with_command_id("c");
        odd.execute_with(&"x".into(), Do(vec![event]), metadata)
            .await
            .unwrap_err();
    }
    for shard in 0..64 {
        let page = control
            .range(&RangeQuery::new(format!("cmd/{shard}")))
            .await
            .unwrap();
        assert!(page.rows.is_empty(), "{page:?}");
    }
}

#[tokio::test]
async fn an_event_that_is_read_back_is_stored() {
    let id = OddId::from("x");
    for event in readable() {
        let odd = Repository::<Odd>::new(InMemoryEventStore::new());
        let done = odd.execute(&id, Do(vec![event.clone()])).await.unwrap();
        let loaded = odd.load(&id).await.unwrap();
        assert_eq!(done.state(), loaded.state());
        if let (OddEvent::Measured { value: a }, [OddEvent::Measured { value: b }]) =
            (&event, &loaded.state().0[..])
        {
            assert_eq!(a.to_bits(), b.to_bits());
        }
    }
}

#[tokio::test]
async fn the_error_names_the_event_and_the_reason_but_not_the_payload() {
    let odd = Repository::<Odd>::new(InMemoryEventStore::new());
    let told = async |event: OddEvent| {
        let done = odd
            .execute(&"x".into(), Do(vec![Counted { by: 1 }, event]))
            .await;
        chain(&done.unwrap_err())
    };
    assert_eq!(
        told(OddEvent::Measured { value: f64::NAN }).await,
        "an event cannot be stored: the payload cannot be encoded: event odd.Measured (2 of 2) cannot be stored: \
         what was encoded cannot be decoded, so no reader could ever read it: the payload cannot be decoded: \
         invalid type: null, expected f64 at line 1 column 13"
    );
    let different = told(OddEvent::Skipped { secret: 213 }).await;
    assert!(different.contains("odd.Skipped (2 of 2)") && different.contains("a different value"));
    assert!(!different.contains("213"), "{different}");
    let panicked = told(OddEvent::Even(Even(213))).await;
    assert!(panicked.contains("decoding what was encoded panicked") && !panicked.contains("213"));
}

#[tokio::test]
async fn an_event_that_upcasters_would_lift_away_is_not_stored() {
    let id = OddId::from("x");
    let steps = [
        Upcasters::new().with("odd", "Counted", 1, |_| Ok(Upcast::Retired)),
        // To a version that the type does not have.
        Upcasters::new().with_json("odd", "Counted", 1, |_| Ok(())),
        Upcasters::new().with("odd", "Counted", 1, |_| Err("no".into())),
        Upcasters::new().with("odd", "Counted", 1, |_| panic!("no")),
    ];
    for upcasters in steps {
        let store = InMemoryEventStore::new();
        let odd = Repository::<Odd>::new(store.clone()).with_upcasters(upcasters.clone());
        let done = odd.execute(&id, Do(vec![Counted { by: 1 }])).await;
        assert!(is_encode(&done), "{upcasters:?}: {done:?}");
        assert_eq!(stored_odd(&store).await, 0);
    }
}

/// A number that JSON does not have, as the text of its bits.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    pub(super) fn serialize<S: Serializer>(value: &f64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&value.to_bits())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        let bits = String::deserialize(d)?.parse().map_err(D::Error::custom)?;
        Ok(f64::from_bits(bits))
    }
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Reading(#[serde(with = "as_text")] f64);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "sensor")]
enum SensorEvent {
    Measured {
        #[serde(with = "as_text")]
        value: f64,
        by: HashMap<u8, u8>,
        perhaps: Option<f64>,
        #[serde(skip)]
        skipped: f64,
    },
    Read(Reading),
}
#[derive(Clone, Debug, Default)]
struct Sensor;
impl Aggregate for Sensor {
    type Id = OddId;
    type Event = SensorEvent;
    fn evolve(&mut self, _: &SensorEvent) {}
}

#[tokio::test]
async fn a_nan_is_stored_if_it_is_read_back_bit_for_bit() {
    let sensors = Repository::<Sensor>::new(InMemoryEventStore::new());
    let append = async |event: SensorEvent| {
        let any = ExpectedVersion::Any;
        let done = sensors.append(&"s".into(), any, &[event]).await;
        done.map_err(ExecuteError::<Infallible>::from)
    };
    let measured = |value, perhaps, skipped| SensorEvent::Measured {
        value,
        by: (0..100).map(|n| (n, n)).collect(),
        perhaps,
        skipped,
    };
    for value in [f64::INFINITY, f64::NAN, -f64::NAN] {
        append(measured(value, Some(1.5), 0.0)).await.unwrap();
        append(SensorEvent::Read(Reading(value))).await.unwrap();
    }
    for event in [
        measured(f64::NAN, Some(f64::NAN), 0.0),
        measured(1.0, Some(f64::NAN), 0.0),
        measured(1.0, None, f64::NAN),
        measured(1.0, None, 1.0),
    ] {
        let refused = append(event.clone()).await;
        assert!(is_encode(&refused), "{event:?}: {refused:?}");
    }
}

/// Written by hand, in a format that keeps a NaN but loses `Some(0)`.
#[derive(Clone, Debug)]
struct ByHand {
    value: f64,
    extra: Option<u8>,
    index: usize,
}
impl PartialEq for ByHand {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value && self.extra == other.extra
    }
}
impl DomainEvent for ByHand {
    const AGGREGATE: &'static str = "hand";
    const TYPES: &'static [EventType] = &[EventType::new("Made", 1)];
    fn type_index(&self) -> usize {
        self.index
    }
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let written = (self.value.to_bits(), self.extra.unwrap_or_default());
        serde_json::to_writer(out, &written).map_err(|e| CodecError::Encode { source: e.into() })
    }
    fn decode(index: usize, payload: &[u8]) -> Result<Self, CodecError> {
        let read = serde_json::from_slice(payload);
        let (bits, extra) = read.map_err(|e| CodecError::Decode { source: e.into() })?;
        Ok(Self {
            value: f64::from_bits(bits),
            extra: Some(extra).filter(|extra| *extra > 0),
            index,
        })
    }
    fn equals_decoded(&self, decoded: &Self) -> bool {
        self.value.to_bits() == decoded.value.to_bits() && self.extra == decoded.extra
    }
}
#[derive(Clone, Debug, Default)]
struct Hand;
impl Aggregate for Hand {
    type Id = OddId;
    type Event = ByHand;
    fn evolve(&mut self, _: &ByHand) {}
}

#[tokio::test]
async fn events_written_by_hand_are_read_back_too_and_say_what_is_equal() {
    let store = InMemoryEventStore::new();
    let hands = Repository::<Hand>::new(store.clone());
    let append = async |value, extra, index| {
        let event = ByHand {
            value,
            extra,
            index,
        };
        hands
            .append(&"x".into(), ExpectedVersion::Any, &[event])
            .await
    };
    append(f64::NAN, Some(1), 0).await.unwrap();
    for (extra, index) in [(Some(0), 0), (Some(1), 7)] {
        let refused = append(1.0, extra, index)
            .await
            .map_err(ExecuteError::<Infallible>::from);
        assert!(is_encode(&refused), "{refused:?}");
    }
    assert_eq!(stored(&store, StreamId::new("hand", "x").unwrap()).await, 1);
}

#[tokio::test]
async fn an_event_that_the_fold_does_not_take_is_not_stored() {
    let id = OddId::from("x");
    for cache in [0, 10] {
        let store = InMemoryEventStore::new();
        let odd = Repository::<Odd>::new(store.clone())
            .with_cache(cache)
            .with_idempotency(InMemoryControlStore::new(), Duration::from_secs(3600));
        odd.execute(&id, Do(vec![Counted { by: 1 }])).await.unwrap();
        let events = || Do(vec![Counted { by: 2 }, Counted { by: 99 }]);

        let done = odd.execute(&id, events()).await;
        let Err(ExecuteError::Fold(error)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(
            error.to_string(),
            "`evolve` panicked on event 3 of odd#x, which is Counted"
        );
        let metadata = Metadata::new().with_command_id("c");
        let once = odd.execute_with(&id, events(), metadata).await;
        assert!(matches!(once, Err(ExecuteError::Fold(_))), "{once:?}");
        let transaction = Transaction::new(store.clone());
        let told = transaction.execute(&odd, &id, events()).await;
        assert!(matches!(told, Err(ExecuteError::Fold(_))));

        assert_eq!(stored_odd(&store).await, 1);
        // The state that the fold left half done is forgotten.
        let next = odd.execute(&id, Do(vec![Counted { by: 3 }])).await.unwrap();
        assert_eq!(next.state().0, [Counted { by: 1 }, Counted { by: 3 }]);
    }
}

#[tokio::test]
async fn a_stored_event_that_the_fold_does_not_take_is_an_error_of_the_load() {
    let id = OddId::from("x");
    let odd = Repository::<Odd>::new(InMemoryEventStore::new());
    // An append does not load the state, so it cannot fold.
    odd.append(&id, ExpectedVersion::Any, &[Counted { by: 99 }])
        .await
        .unwrap();
    let loaded = odd.load(&id).await;
    assert!(
        matches!(&loaded, Err(LoadError::Fold(e)) if e.version.get() == 1),
        "{loaded:?}"
    );
}

/// The state that a command leaves after each outcome of its append is the state of a load.
#[tokio::test]
async fn a_state_that_was_folded_ahead_is_kept_only_if_its_events_were_stored() {
    let id = OddId::from("x");
    let count = |by| Do(vec![Counted { by }]);
    for fault in [
        Fault::Unavailable,
        Fault::LoseReply,
        Fault::LoseRequest,
        Fault::Throttled(None),
    ] {
        let inner = InMemoryEventStore::new();
        let faults = Faults::seeded(1).with(fault.clone().on(Op::Append).at(2));
        let odd = Repository::<Odd>::new(faults.event_store(inner.clone())).with_cache(10);
        odd.execute(&id, count(1)).await.unwrap();
        let second = odd.execute(&id, count(2)).await;
        assert!(second.is_err(), "{fault:?}");
        let third = odd.execute(&id, count(3)).await.unwrap();
        let fresh = Repository::<Odd>::new(inner).load(&id).await.unwrap();
        assert_eq!(third.state(), fresh.state(), "{fault:?}");
    }
    // Conflicts: another process writes before every attempt of the first three.
    let store = InMemoryEventStore::new();
    let (cached, other) = (
        Repository::<Odd>::new(store.clone()).with_cache(10),
        Repository::<Odd>::new(store.clone()),
    );
    for by in 1..5 {
        other.execute(&id, count(by)).await.unwrap();
        let done = cached.execute(&id, count(by)).await.unwrap();
        let fresh = other.load(&id).await.unwrap();
        assert_eq!((done.state(), done.head()), (fresh.state(), fresh.head()));
    }
}

/// A codec that seals, but does not open as it should.
#[derive(Debug)]
struct Broken(&'static str);
#[async_trait]
impl PayloadCodec for Broken {
    fn tag(&self) -> &'static str {
        "broken"
    }
    async fn seal(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Sealed, PayloadError> {
        assert!(self.0 != "seal panics");
        Ok(Sealed::Payload(payload.clone()))
    }
    async fn open(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Opened, PayloadError> {
        match self.0 {
            "other bytes" => Ok(Opened::Payload(payload.slice(1..))),
            "shredded" => Ok(Opened::Shredded),
            "damaged" => Err(PayloadError::damaged("no")),
            "panics" => panic!("no"),
            "away" => Err(PayloadError::unavailable("no")),
            _ => Ok(Opened::Payload(payload.clone())),
        }
    }
}

#[tokio::test]
async fn what_payload_codecs_do_not_open_again_is_not_stored() {
    let id = OddId::from("x");
    for (broken, is_transient) in [
        ("other bytes", false),
        ("shredded", false),
        ("damaged", false),
        ("panics", false),
        ("seal panics", false),
        ("away", true),
    ] {
        let store = InMemoryEventStore::new();
        let codecs = PayloadCodecs::new().with_writer(std::sync::Arc::new(Broken(broken)));
        let odd = Repository::<Odd>::new(store.clone()).with_payload_codecs(codecs);
        let done = odd.execute(&id, Do(vec![Counted { by: 1 }])).await;
        assert_eq!(is_encode(&done), !is_transient, "{broken}: {done:?}");
        assert_eq!(done.unwrap_err().is_transient(), is_transient, "{broken}");
        assert_eq!(stored_odd(&store).await, 0, "{broken}");
    }
    let writers = PayloadCodecs::new().with_writer(std::sync::Arc::new(Broken("other bytes")));
    let unchecked = Repository::<Odd>::new(InMemoryEventStore::new())
        .with_payload_codecs(writers)
        .without_encode_check();
    unchecked
        .execute(&id, Do(vec![Counted { by: 1 }]))
        .await
        .unwrap();
}

#[tokio::test]
async fn without_the_check_an_unreadable_event_is_stored() {
    let store = InMemoryEventStore::new();
    let odd = Repository::<Odd>::new(store.clone()).without_encode_check();
    let id = OddId::from("x");
    odd.execute(&id, Do(vec![OddEvent::Measured { value: f64::NAN }]))
        .await
        .unwrap();
    let loaded = odd.load(&id).await;
    assert!(matches!(loaded, Err(LoadError::Codec { .. })), "{loaded:?}");
    // What panics is still an error, and stores nothing.
    odd.append(
        &OddId::from("y"),
        ExpectedVersion::Any,
        &[Counted { by: 1 }],
    )
    .await
    .unwrap();
    let fold = odd
        .execute(&OddId::from("y"), Do(vec![Counted { by: 99 }]))
        .await;
    assert!(matches!(fold, Err(ExecuteError::Fold(_))), "{fold:?}");
}

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
