//! The repository stores only what it can read back and what the fold accepts.
mod fold;
mod formats;
mod snapshots;

use super::*;
use bytes::Bytes;
use foldstream::ports::{ControlStore, RangeQuery};
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Opened, PayloadCodec, PayloadCodecs,
    PayloadContext, PayloadError, Sealed, StreamId, Transaction, chain, id,
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
/// An event that is written, but refused by its own reader.
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

/// A codec that seals, but does not open correctly.
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
    // A panic is an error too, and nothing is stored.
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
