//! The rules that every event store checks before it calls its backend.
use super::{Append, AppendAll, Capabilities, EventData, EventStoreError, RefusedKind};
use crate::{BoxError, Timestamp, text::forbidden_char};

impl Append {
    /// Checks the rules that need neither the limits of a store nor a look into the payloads.
    ///
    /// A repository calls it before it calls the store. Adapters call
    /// [`validate_for`](Self::validate_for), which checks everything.
    ///
    /// A commit that passes can be published and read. Every event has a time that can be written,
    /// and its record has a key and headers of characters that a CloudEvents string may hold.
    ///
    /// # Errors
    /// [`EventStoreError::Invalid`] if
    /// - there is no event, or there are more than [`Append::MAX_EVENTS`],
    /// - `recorded_at` is before [`Timestamp::MIN`] or after [`Timestamp::MAX`],
    /// - an event's name, an event's codec, the correlation id, the causation id or the traceparent
    ///   holds a control character or a Unicode noncharacter,
    /// - a metadata key holds a NUL, which no bus could carry as a header name.
    ///
    /// [`EventStoreError::TooLarge`] if there are more than [`Append::MAX_METADATA_BYTES`] of
    /// metadata.
    pub fn validate(&self) -> Result<(), EventStoreError> {
        match self.refusal() {
            Some(reason) => Err(EventStoreError::Invalid { reason }),
            None => self.validate_metadata(),
        }
    }

    fn refusal(&self) -> Option<String> {
        let stream = self.head.stream();
        match self.events.len() {
            0 => return Some("a commit needs at least one event".into()),
            n if n > Self::MAX_EVENTS => {
                let most = Self::MAX_EVENTS;
                return Some(format!(
                    "a commit has at most {most} events, this one has {n}"
                ));
            }
            _ => {}
        }
        if !(Timestamp::MIN..=Timestamp::MAX).contains(&self.recorded_at) {
            return Some(format!(
                "the commit to {stream} is recorded {} microseconds after 1970, outside of the years 0 to 9999: check the clock of this host, and the unit if the time comes from elsewhere",
                self.recorded_at.as_micros()
            ));
        }
        let m = &self.metadata;
        let shared = [
            ("correlation id", m.correlation_id().map(|id| id.as_str())),
            ("causation id", m.causation_id().map(|id| id.as_str())),
            ("traceparent", m.traceparent()),
        ];
        let of_events = self.events.iter().flat_map(|event| {
            let codec = ("codec", event.codec.as_deref());
            [("event name", Some(event.name.as_str())), codec]
        });
        for (what, text) in shared.into_iter().chain(of_events) {
            if let Some(found) = text.and_then(forbidden_char) {
                let code = u32::from(found);
                return Some(format!(
                    "the {what} of a commit to {stream} holds the character U+{code:04X}, which headers of records must not: leave it out or encode it"
                ));
            }
        }
        let has_nul = m.user().any(|(key, _)| key.contains('\0'));
        has_nul.then(|| "a metadata key must not contain NUL".into())
    }

    /// Refuses payloads without a codec that are not JSON.
    fn validate_payloads(&self) -> Result<(), EventStoreError> {
        let stream = self.head.stream();
        let invalid = |event: &EventData, error| EventStoreError::Invalid {
            reason: format!(
                "the payload of {} in a commit to {stream} is not JSON ({error}): encode it as JSON or name its codec",
                event.name
            ),
        };
        let mut events = self.events.iter();
        events.try_for_each(|event| check_json(event).map_err(|error| invalid(event, error)))
    }

    fn validate_metadata(&self) -> Result<(), EventStoreError> {
        match self.metadata.bytes() {
            0..=Self::MAX_METADATA_BYTES => Ok(()),
            bytes => Err(EventStoreError::TooLarge {
                stream: self.head.stream().clone(),
                bytes,
                limit: Self::MAX_METADATA_BYTES,
            }),
        }
    }

    /// Checks everything that an event store must check before any call to its backend: the rules
    /// of [`validate`](Self::validate), the payloads, and the sizes against the limits of the
    /// store.
    ///
    /// An adapter calls it before anything else and needs no other check of a request. Where
    /// several rules are broken, the error is the first of the list below.
    ///
    /// # Errors
    /// 1. [`EventStoreError::Invalid`] for the reasons of [`validate`](Self::validate), or if the
    ///    payload of an event without a codec is not JSON in UTF-8.
    /// 2. [`EventStoreError::TooLarge`] if there are more than [`Append::MAX_METADATA_BYTES`] of
    ///    metadata, if the commit is over [`Capabilities::max_commit_bytes`], if an event is over
    ///    [`Capabilities::max_event_bytes`], or if the commit is with its parts over
    ///    [`Capabilities::max_append_bytes`].
    pub fn validate_for(&self, capabilities: &Capabilities) -> Result<(), EventStoreError> {
        self.validate_content()?;
        self.validate_sizes(capabilities)
    }

    /// Refuses what no store takes, whatever its limits.
    fn validate_content(&self) -> Result<(), EventStoreError> {
        if let Some(reason) = self.refusal() {
            return Err(EventStoreError::Invalid { reason });
        }
        self.validate_payloads()
    }

    fn validate_sizes(&self, capabilities: &Capabilities) -> Result<(), EventStoreError> {
        self.validate_metadata()?;
        let too_large = |bytes, limit| {
            let stream = self.head.stream().clone();
            Err(EventStoreError::TooLarge {
                stream,
                bytes,
                limit,
            })
        };
        let commit = self.bytes();
        if commit > capabilities.max_commit_bytes {
            return too_large(commit, capabilities.max_commit_bytes);
        }
        let largest = self.events.iter().map(EventData::bytes).max();
        let largest = largest.unwrap_or_default();
        if largest > capabilities.max_event_bytes {
            return too_large(largest, capabilities.max_event_bytes);
        }
        match self.bytes_in_parts(capabilities.max_part_bytes) {
            stored if stored > capabilities.max_append_bytes => {
                too_large(stored, capabilities.max_append_bytes)
            }
            _ => Ok(()),
        }
    }
}

impl AppendAll {
    /// Checks the rules that need neither the limits of a store nor a look into the payloads.
    ///
    /// Adapters call [`validate_for`](Self::validate_for), which checks everything.
    ///
    /// # Errors
    /// - [`EventStoreError::Invalid`] if there is no commit, or if a stream is named twice.
    /// - Those of [`Append::validate`] if one of the commits is invalid.
    pub fn validate(&self) -> Result<(), EventStoreError> {
        self.validate_streams()?;
        self.commits.iter().try_for_each(Append::validate)
    }

    /// Refuses a request without a commit, and one that names a stream twice.
    fn validate_streams(&self) -> Result<(), EventStoreError> {
        if self.commits.is_empty() {
            return Err(EventStoreError::Invalid {
                reason: "an atomic append needs at least one commit".into(),
            });
        }
        let mut seen = std::collections::BTreeSet::new();
        for head in self.commits.iter().map(|a| &a.head).chain(&self.unchanged) {
            if !seen.insert(head.stream()) {
                return Err(EventStoreError::Invalid {
                    reason: format!("stream {} is named twice in one append", head.stream()),
                });
            }
        }
        Ok(())
    }

    /// Checks everything that an event store must check before any call to its backend: the rules
    /// of [`validate`](Self::validate), the payloads, and the streams and sizes against the limits
    /// of the store.
    ///
    /// An adapter calls it before anything else and needs no other check of a request. Where
    /// several rules are broken, by one commit or by several, the error is the first of the list
    /// below.
    ///
    /// # Errors
    /// 1. [`EventStoreError::Invalid`] for the reasons of [`validate`](Self::validate), or if the
    ///    payload of an event without a codec is not JSON in UTF-8.
    /// 2. [`Refused(Unsupported)`](EventStoreError::Refused) if the append touches more streams
    ///    than [`Capabilities::max_streams_per_append`].
    /// 3. [`EventStoreError::TooLarge`] if a commit is over one of the limits of
    ///    [`Append::validate_for`].
    /// 4. [`EventStoreError::TooLarge`] if the commits are together over
    ///    [`Capabilities::max_commit_bytes`], or with their parts over
    ///    [`Capabilities::max_append_bytes`]. The error names the stream of the largest.
    /// 5. [`Refused(Unsupported)`](EventStoreError::Refused) if the [`parts`](Append::parts) of the
    ///    commits and the streams that are only checked are together more than
    ///    [`Capabilities::max_streams_per_append`].
    pub fn validate_for(&self, capabilities: &Capabilities) -> Result<(), EventStoreError> {
        self.validate_streams()?;
        self.commits.iter().try_for_each(Append::validate_content)?;
        let (touched, most) = (
            self.commits.len() + self.unchanged.len(),
            capabilities.max_streams_per_append as usize,
        );
        if touched > most {
            return Err(unsupported(format!(
                "an append touches {touched} streams, and at most {most} can be written or checked together: append to fewer"
            )));
        }
        let each = |append: &Append| append.validate_sizes(capabilities);
        self.commits.iter().try_for_each(each)?;
        let in_parts = |append: &Append| append.bytes_in_parts(capabilities.max_part_bytes);
        self.check_sum(Append::bytes, capabilities.max_commit_bytes)?;
        self.check_sum(in_parts, capabilities.max_append_bytes)?;
        self.check_parts(capabilities)
    }

    /// Refuses commits that are together over a limit.
    fn check_sum(
        &self,
        size: impl Fn(&Append) -> usize,
        limit: usize,
    ) -> Result<(), EventStoreError> {
        let bytes = self.commits.iter().map(&size).sum();
        match self.commits.iter().max_by_key(|append| size(append)) {
            Some(largest) if bytes > limit => Err(EventStoreError::TooLarge {
                stream: largest.head.stream().clone(),
                bytes,
                limit,
            }),
            _ => Ok(()),
        }
    }

    /// Refuses an append with too many parts.
    fn check_parts(&self, capabilities: &Capabilities) -> Result<(), EventStoreError> {
        let parts = |append: &Append| append.parts(capabilities.max_part_bytes);
        let (most, checked) = (
            capabilities.max_streams_per_append as usize,
            self.unchanged.len(),
        );
        let written: usize = self.commits.iter().map(parts).sum();
        let is_plain = self.commits.len() == 1 && checked == 0;
        if is_plain || written + checked <= most {
            return Ok(());
        }
        let split = self.commits.iter().filter(|append| parts(append) > 1);
        Err(unsupported(format!(
            "an append needs {} items, and one append has at most {most}: {written} for its commits, of which {} are over \
             {} KiB and split between events into parts of at most that size, and {checked} for streams that are only \
             checked. Append to fewer streams at once, or smaller commits",
            written + checked,
            split.count(),
            capabilities.max_part_bytes / 1024
        )))
    }
}

/// Checks that a payload without a codec is JSON, without building a tree of it.
fn check_json(event: &EventData) -> Result<(), BoxError> {
    if event.codec.is_none() {
        // The parser passes over the bytes of texts that nobody asks for, so UTF-8 is checked
        // first.
        let text = std::str::from_utf8(&event.payload)?;
        serde_json::from_str::<serde::de::IgnoredAny>(text)?;
    }
    Ok(())
}

fn unsupported(reason: String) -> EventStoreError {
    EventStoreError::Refused {
        kind: RefusedKind::Unsupported,
        source: "see the capabilities of the event store".into(),
        reason,
    }
}
