//! The revocation of partitions, and the departure from the group.
use super::{
    context::remove,
    member::answer,
    poll::{LONGEST_WAIT, PollLoop},
    shared::Pending,
};
use crate::{client::list, worked_before::Uses};
use foldstream::ports::PartitionId;
use rdkafka::{Offset as Place, consumer::Consumer as _};
use std::time::Instant;

/// The partitions that are being revoked.
pub(super) struct Revoking {
    pub(super) partitions: Vec<PartitionId>,
    stage: Stage,
}
enum Stage {
    /// The readers of the partitions finish their work.
    Draining { pending: Pending, until: Instant },
    /// New commits are refused, and commits under way end.
    AwaitingCommits { until: Instant },
}

impl PollLoop {
    pub(super) fn start_revoking(&mut self, partitions: Vec<PartitionId>) {
        self.queues.retain(|queue| !partitions.contains(&queue.id));
        self.unexplained.retain(|id| !partitions.contains(id));
        self.client.context().forget_ids(&partitions);
        // The group takes partitions away before this member has found their positions.
        self.assigning = None;
        let stage = if self.client.assignment_lost() {
            self.shared.end(&partitions, true);
            self.await_commits()
        } else {
            Stage::Draining {
                pending: self.shared.revoke(&partitions, self.settings.grace),
                until: Instant::now() + self.settings.grace,
            }
        };
        self.revoking = Some(Revoking { partitions, stage });
    }

    fn await_commits(&self) -> Stage {
        Stage::AwaitingCommits {
            until: Instant::now() + self.settings.request_timeout,
        }
    }

    pub(super) fn revoke_when_drained(&mut self) {
        let Some(mut revoking) = self.revoking.take() else {
            return;
        };
        if let Stage::Draining { pending, until } = &revoking.stage {
            let lost = self.client.assignment_lost();
            if lost || pending.is_released() || *until <= Instant::now() {
                self.shared.end(&revoking.partitions, lost);
                revoking.stage = self.await_commits();
            }
        }
        match revoking.stage {
            // A commit that is sent after the partition was given up would move the offset of its
            // next reader.
            Stage::AwaitingCommits { until }
                if self.shared.commits() == 0 || until <= Instant::now() =>
            {
                let given_back = list(&revoking.partitions, |_| Place::Invalid)
                    .and_then(|list| remove(&self.client, &list));
                if let Err(error) = given_back {
                    let group = &self.settings.group;
                    let doing = format_args!("giving back partitions of group {group}");
                    self.tell(doing, Uses::nothing(), error);
                }
            }
            _ => self.revoking = Some(revoking),
        }
    }

    pub(super) fn leave(mut self) {
        // Commits that were accepted are stored before other members get the partitions.
        let until = Instant::now() + self.settings.request_timeout;
        while self.shared.commits() > 0 && Instant::now() < until {
            self.shared.wake.wait(LONGEST_WAIT);
        }
        // Each queue holds the client. Dropping the last reference leaves the group and waits for
        // it.
        self.queues.clear();
        let unanswered = self.take_unanswered();
        answer(&self.client, unanswered);
        drop(self.client);
    }
}
