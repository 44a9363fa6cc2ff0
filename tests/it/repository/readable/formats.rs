//! Formats of the type's own: NaN as the text of its bits, and an event that is encoded by hand.
use super::*;
use foldstream::EventType;

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
