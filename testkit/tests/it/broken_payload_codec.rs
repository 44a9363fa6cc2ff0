//! Payload codecs that each break one rule of the contract, and the proof that every case is
//! needed.
use crate::matrix::{Suspect, assert_every_case_is_needed};
use async_trait::async_trait;
use foldstream::{
    Bytes, Opened, PayloadCodec, PayloadContext, PayloadError, PayloadKind, Sealed, StreamId,
};
use foldstream_testkit::contract::payload_codec::{self, CodecFixture};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// The one rule that a codec breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Breaks {
    Nothing,
    Tag,
    TagOfInstances,
    LastByte,
    Instances,
    Snapshots,
    Tasks,
    ShortBytes,
    Secrecy,
    Nonce,
    Binding,
    BindingOfVersion,
    BindingOfPlace,
    Authentication,
    Length,
    Shredded,
    Refusal,
    OtherKeys,
}

/// A key, or `None` after its deletion.
type Key = Option<u64>;

/// A toy cipher without security: the test is about the rules of a codec, not about secrecy.
#[derive(Debug)]
struct Codec {
    breaks: Breaks,
    instance: u64,
    keys: Arc<Mutex<BTreeMap<String, Key>>>,
    nonces: Arc<AtomicU64>,
    last: Mutex<u64>,
}

fn hash(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

impl Codec {
    fn breaks(&self, rule: Breaks) -> bool {
        self.breaks == rule
    }
    fn key(&self, context: &PayloadContext<'_>) -> Key {
        let mut keys = self.keys.lock().unwrap();
        let key = keys.entry(context.stream.to_string()).or_insert(Some(7));
        let instance = if self.breaks(Breaks::Instances) {
            self.instance
        } else {
            0
        };
        key.map(|key| hash((key, context.stream.as_str(), instance)))
    }
    fn bound(&self, context: &PayloadContext<'_>) -> Vec<u8> {
        match self.breaks {
            Breaks::Binding => Vec::new(),
            Breaks::BindingOfVersion => format!("{:?}{:?}", context.commit_id, context.kind).into(),
            Breaks::BindingOfPlace => match context.kind {
                PayloadKind::Event {
                    name,
                    schema_version,
                    ..
                } => format!(
                    "{:?}{:?}{name}{schema_version}",
                    context.commit_id, context.version
                )
                .into(),
                _ => context.associated_data(),
            },
            _ => context.associated_data(),
        }
    }
    /// Writes the nonce, the check and the text.
    fn write(&self, context: &PayloadContext<'_>, key: u64, nonce: u64, payload: &[u8]) -> Bytes {
        let check = hash((key, nonce, self.bound(context), payload));
        let check = if self.breaks(Breaks::Authentication) {
            0
        } else {
            check
        };
        let mut out = [nonce.to_be_bytes(), check.to_be_bytes()].concat();
        out.extend(self.mask(key, nonce, payload));
        out.into()
    }
    fn mask(&self, key: u64, nonce: u64, text: &[u8]) -> Vec<u8> {
        if self.breaks(Breaks::Secrecy) {
            return text.to_vec();
        }
        let mut stream = fastrand::Rng::with_seed(hash((key, nonce)));
        text.iter().map(|b| b ^ stream.u8(..)).collect()
    }
    fn read(&self, context: &PayloadContext<'_>, key: u64, sealed: &[u8]) -> Option<Bytes> {
        if self.breaks(Breaks::ShortBytes) {
            assert!(sealed.len() >= 16, "slice index out of range");
        }
        let (nonce, rest) = sealed.split_first_chunk()?;
        let (check, text) = rest.split_first_chunk()?;
        let nonce = u64::from_be_bytes(*nonce);
        let text = self.mask(key, nonce, text);
        let is_right = |text: &[u8]| {
            hash((key, nonce, self.bound(context), text)) == u64::from_be_bytes(*check)
        };
        if self.breaks(Breaks::Authentication) || is_right(&text) {
            return Some(text.into());
        }
        // Assumes that the payload was padded.
        let shorter = text.split_last().map(|(_, text)| text)?;
        (self.breaks(Breaks::Length) && is_right(shorter)).then(|| shorter.to_vec().into())
    }
}

#[async_trait]
impl PayloadCodec for Codec {
    fn tag(&self) -> &'static str {
        match self.breaks {
            Breaks::Tag => "a,b",
            Breaks::TagOfInstances if self.instance % 2 == 1 => "odd",
            _ => "sound",
        }
    }
    async fn seal(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Sealed, PayloadError> {
        let key = match self.key(context) {
            Some(key) => key,
            None if self.breaks(Breaks::Refusal) => {
                let fresh = (context.stream.to_string(), Some(8));
                self.keys.lock().unwrap().extend([fresh]);
                hash(8)
            }
            None => return Err(PayloadError::refused("the key was deleted")),
        };
        let mut nonce = match self.breaks {
            Breaks::Nonce => hash(context.associated_data()),
            _ => self.nonces.fetch_add(1, Ordering::SeqCst),
        };
        if self.breaks(Breaks::Tasks) {
            *self.last.lock().unwrap() = nonce;
            let sealed = self.write(context, key, nonce, payload);
            tokio::task::yield_now().await;
            nonce = *self.last.lock().unwrap();
            return Ok(Sealed::Payload(
                [&nonce.to_be_bytes(), &sealed[8..]].concat().into(),
            ));
        }
        Ok(Sealed::Payload(self.write(context, key, nonce, payload)))
    }
    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError> {
        let Some(key) = self.key(context) else {
            return match self.breaks {
                Breaks::Shredded => Err(PayloadError::refused("no such key")),
                _ => Ok(Opened::Shredded),
            };
        };
        let opened = self.read(context, key, payload);
        let opened = opened.ok_or_else(|| PayloadError::damaged("it does not match its check"))?;
        let is_snapshot = matches!(context.kind, PayloadKind::Snapshot { .. });
        Ok(Opened::Payload(match self.breaks {
            Breaks::LastByte if opened.len() > 10_000 => opened.slice(1..),
            Breaks::Snapshots if is_snapshot => opened.slice(1..),
            _ => opened,
        }))
    }
}

struct Fixture {
    breaks: Breaks,
    keys: Arc<Mutex<BTreeMap<String, Key>>>,
    nonces: Arc<AtomicU64>,
    instances: AtomicU64,
}

#[async_trait]
impl CodecFixture for Fixture {
    fn codec(&self) -> Arc<dyn PayloadCodec> {
        Arc::new(Codec {
            breaks: self.breaks,
            instance: self.instances.fetch_add(1, Ordering::SeqCst),
            keys: self.keys.clone(),
            nonces: self.nonces.clone(),
            last: Mutex::default(),
        })
    }
    async fn shred(&self, stream: &StreamId) {
        let mut keys = self.keys.lock().unwrap();
        if self.breaks == Breaks::OtherKeys {
            keys.values_mut().for_each(|key| *key = None);
        }
        keys.insert(stream.to_string(), None);
    }
}

/// Declares a codec that breaks a rule, the cases that must reject it, and the cases that rest on
/// the rule.
macro_rules! suspects {
    ($($rule:ident: [$($case:ident),*] $(and [$($also:ident),*])?,)*) => {
        [$(Suspect::named(
            concat!("it::broken_payload_codec::", stringify!($rule)),
            &["encrypts", "shreds"],
            || -> Arc<dyn CodecFixture> {
                Arc::new(Fixture {
                    breaks: Breaks::$rule,
                    keys: Arc::default(),
                    nonces: Arc::default(),
                    instances: AtomicU64::new(0),
                })
            },
            &[$(stringify!($case)),*],
        )
        .and_by(&[$($(stringify!($also)),*)?])),*]
    };
}

#[test]
fn every_case_of_the_codec_contract_is_needed() {
    let suspects = suspects! {
        Nothing: [],
        Tag: [the_tag_can_be_stored_and_never_changes],
        TagOfInstances: [the_tag_can_be_stored_and_never_changes],
        LastByte: [what_was_sealed_is_opened_to_the_same_bytes],
        Instances: [another_instance_opens_what_was_sealed]
            and [other_streams_keep_their_keys],
        Snapshots: [a_snapshot_is_opened_to_the_same_bytes_or_refused]
            and [without_its_key_a_payload_is_shredded],
        Tasks: [several_tasks_at_once_do_not_disturb_each_other],
        ShortBytes: [
            foreign_bytes_are_an_error_or_a_payload_but_never_a_panic,
            a_payload_cut_short_is_damaged
        ],
        Secrecy: [a_sealed_payload_does_not_show_its_text],
        Nonce: [the_same_payload_is_never_sealed_to_the_same_bytes],
        Binding: [in_another_context_a_payload_is_damaged],
        BindingOfVersion: [in_another_context_a_payload_is_damaged],
        BindingOfPlace: [in_another_context_a_payload_is_damaged],
        Authentication: [a_changed_byte_is_damage]
            and [in_another_context_a_payload_is_damaged, a_payload_cut_short_is_damaged],
        Length: [a_payload_cut_short_is_damaged],
        Shredded: [without_its_key_a_payload_is_shredded]
            and [sealing_without_the_key_is_refused],
        Refusal: [sealing_without_the_key_is_refused],
        OtherKeys: [other_streams_keep_their_keys],
    };
    assert_every_case_is_needed(&payload_codec::cases(), &suspects);
}
