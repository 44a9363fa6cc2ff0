//! The streams of a new generation that were parked during its replay.
use super::{controlled, lock};
use crate::{
    StreamId, Version,
    control::{ParkFailure, ParkNotes, ParkRow, ProcessorRows, PutIf, Stored},
    ports::{ControlStoreError, PartitionId},
};
use std::{collections::HashMap, sync::Mutex};

/// A parked stream.
#[derive(Clone, Debug)]
struct Parked {
    partition: PartitionId,
    row: Stored<ParkRow>,
    /// The highest version that the scan has met.
    met: Version,
}

/// The parked streams of one generation. The policy limits their number.
#[derive(Debug, Default)]
pub(super) struct ParkedStreams(Mutex<HashMap<StreamId, Parked>>);

impl ParkedStreams {
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Reads the rows of a partition, which a former process of the run has written.
    pub(super) async fn load(
        &self,
        rows: &ProcessorRows,
        partition: &PartitionId,
    ) -> Result<(), ControlStoreError> {
        let mut after = None;
        loop {
            let page = controlled(|| rows.park_page(partition, after.clone())).await?;
            for (stream, row) in page.rows {
                let parked = Parked {
                    partition: partition.clone(),
                    met: row.value.high,
                    row,
                };
                lock(&self.0).insert(stream, parked);
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Notes that versions of a stream up to this one wait. Returns false if the stream is not
    /// parked.
    pub(super) fn defer(&self, stream: &StreamId, version: Version) -> bool {
        let mut parked = lock(&self.0);
        let Some(parked) = parked.get_mut(stream) else {
            return false;
        };
        parked.met = parked.met.max(version);
        true
    }

    /// Parks a stream. The model was flushed, so that everything before the failure is durable.
    pub(super) async fn park(
        &self,
        rows: &ProcessorRows,
        partition: &PartitionId,
        stream: &StreamId,
        failure: &ParkFailure,
    ) -> Result<(), ControlStoreError> {
        let create = || rows.park_create(partition, stream, failure, ParkNotes::default());
        let row = match controlled(create).await? {
            PutIf::Written(row) | PutIf::Conflict(Some(row)) => row,
            // Nobody releases a stream of a generation that does not serve yet.
            PutIf::Conflict(None) => {
                return Err(ControlStoreError::Unavailable {
                    source: format!("the park row of {stream} came and went").into(),
                });
            }
        };
        let parked = Parked {
            partition: partition.clone(),
            met: row.value.high,
            row,
        };
        lock(&self.0).insert(stream.clone(), parked);
        Ok(())
    }

    /// Stores how far the versions that wait go. A cursor may pass them only after that: nobody
    /// else tells the runner that they wait.
    pub(super) async fn raise(&self, rows: &ProcessorRows) -> Result<(), ControlStoreError> {
        let grown: Vec<_> = lock(&self.0)
            .iter()
            .filter(|(_, parked)| parked.row.value.high < parked.met)
            .map(|(stream, parked)| (stream.clone(), parked.clone()))
            .collect();
        for (stream, mut parked) in grown {
            while parked.row.value.high < parked.met {
                let row = parked.row.value.deferred_to(parked.met);
                let seen = parked.row.revision;
                let put = || rows.park_replace(&parked.partition, &stream, row.clone(), seen);
                match controlled(put).await? {
                    PutIf::Written(row) | PutIf::Conflict(Some(row)) => parked.row = row,
                    PutIf::Conflict(None) => break,
                }
            }
            if let Some(known) = lock(&self.0).get_mut(&stream) {
                known.row = parked.row;
            }
        }
        Ok(())
    }
}
