//! Buses that break a rule of commits, pauses and groups.
use super::{Done, Member, Next, Sabotage, Suspects, broken};
use async_trait::async_trait;
use foldstream::{
    CommitId,
    adapter::check_group,
    ports::{ConsumerEvent, MessageBusError, OffsetCommit, PartitionId, Revocation, Subscription},
};
use foldstream_testkit::InMemoryMessageBus;
use std::{collections::BTreeSet, sync::Mutex, time::Duration};
use tokio::time::timeout;

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<TakesAnyGroup>(&["a_name_that_no_group_can_have_is_invalid"]),
        broken::<CommitsLater>(&["a_commit_is_stored_when_it_returns"]).and_by(&[
            "a_partition_starts_at_the_committed_offset_else_at_its_start_offset",
            "a_commit_under_another_epoch_is_stale_and_stores_nothing",
            "members_share_the_partitions_and_each_message_goes_to_one",
            "a_commit_during_a_revocation_counts",
            "a_commit_after_the_partition_has_moved_is_stale",
            "a_leaving_members_partitions_go_to_the_others",
            "a_pause_ends_with_its_assignment",
            "a_deleted_group_is_forgotten",
            "a_reached_offset_can_be_committed",
            "a_running_member_never_continues_in_a_recreated_topic",
            "a_static_member_that_comes_back_gets_its_partitions",
            "a_static_member_that_stays_away_loses_its_partitions",
        ]),
        broken::<CommitsOneByOne>(&["a_commit_under_another_epoch_is_stale_and_stores_nothing"])
            .and_by(&["a_commit_after_the_partition_has_moved_is_stale"]),
        broken::<HidesStaleCommits>(&["a_commit_after_the_partition_has_moved_is_stale"]).and_by(
            &[
                "a_commit_under_another_epoch_is_stale_and_stores_nothing",
                "a_running_member_never_continues_in_a_recreated_topic",
            ],
        ),
        broken::<IgnoresPauses>(&[
            "a_paused_partition_delivers_nothing_and_continues_without_a_gap",
        ])
        .and_by(&[
            "a_member_that_has_paused_everything_stays_in_the_group",
            "a_paused_partition_reaches_nothing",
        ]),
        broken::<ForgetsThatItLeft>(&["after_leave_everything_is_closed"]),
        broken::<KeepsGroups>(&["a_deleted_group_is_forgotten"]),
        broken::<GivesEachAGroup>(&["members_share_the_partitions_and_each_message_goes_to_one"])
            .and_by(&[
                "a_partition_starts_at_the_committed_offset_else_at_its_start_offset",
                "what_is_not_committed_comes_again",
                "a_commit_during_a_revocation_counts",
                "a_commit_after_the_partition_has_moved_is_stale",
                "a_leaving_members_partitions_go_to_the_others",
                "a_pause_ends_with_its_assignment",
                "a_reached_offset_can_be_committed",
                "a_static_member_that_comes_back_gets_its_partitions",
                "a_static_member_that_stays_away_loses_its_partitions",
                "of_two_members_with_one_instance_id_one_is_refused",
            ]),
        broken::<RevokesAtOnce>(&["a_commit_during_a_revocation_counts"]).and_by(&[
            "members_share_the_partitions_and_each_message_goes_to_one",
            "a_commit_after_the_partition_has_moved_is_stale",
            "a_leaving_members_partitions_go_to_the_others",
            "a_pause_ends_with_its_assignment",
            "a_static_member_that_comes_back_gets_its_partitions",
            "a_static_member_that_stays_away_loses_its_partitions",
        ]),
        broken::<LeavesWhenDropped>(&["a_leaving_members_partitions_go_to_the_others"]).and_by(&[
            "a_pause_ends_with_its_assignment",
            "a_static_member_that_comes_back_gets_its_partitions",
            "a_static_member_that_stays_away_loses_its_partitions",
        ]),
        broken::<RemembersPauses>(&["a_pause_ends_with_its_assignment"]),
        broken::<ExpelsIdleMembers>(&["a_member_that_has_paused_everything_stays_in_the_group"]),
    ]
}

/// Accepts any name as it is given.
#[derive(Debug, Default)]
struct TakesAnyGroup;
#[async_trait]
impl Sabotage for TakesAnyGroup {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        if check_group(&subscription.group).is_err() {
            subscription.group = "of no good name".into();
        }
        subscription
    }
}

/// Commits offsets in the background.
#[derive(Debug, Default)]
struct CommitsLater;
#[async_trait]
impl Sabotage for CommitsLater {
    async fn next(&self, member: &Member) -> Next {
        let pending = std::mem::take(&mut member.notes.lock().unwrap().pending);
        // No caller hears of a failure.
        let _ = member.inner.commit(&pending).await;
        member.inner.next().await
    }
    async fn commit(&self, member: &Member, commits: &[OffsetCommit]) -> Done {
        // An offset that is stale or after the end is still found at once.
        member.inner.commit(&[]).await?;
        member
            .notes
            .lock()
            .unwrap()
            .pending
            .extend_from_slice(commits);
        Ok(())
    }
    async fn leave(&self, member: &Member) -> Done {
        let pending = std::mem::take(&mut member.notes.lock().unwrap().pending);
        let _ = member.inner.commit(&pending).await;
        member.inner.leave().await
    }
}

#[derive(Debug, Default)]
struct CommitsOneByOne;
#[async_trait]
impl Sabotage for CommitsOneByOne {
    async fn commit(&self, member: &Member, commits: &[OffsetCommit]) -> Done {
        for commit in commits {
            member.inner.commit(std::slice::from_ref(commit)).await?;
        }
        member.inner.commit(&[]).await
    }
}

#[derive(Debug, Default)]
struct HidesStaleCommits;
#[async_trait]
impl Sabotage for HidesStaleCommits {
    async fn commit(&self, member: &Member, commits: &[OffsetCommit]) -> Done {
        match member.inner.commit(commits).await {
            Err(MessageBusError::StaleAssignment { .. }) => Ok(()),
            other => other,
        }
    }
}

#[derive(Debug, Default)]
struct IgnoresPauses;
#[async_trait]
impl Sabotage for IgnoresPauses {
    async fn pause(&self, member: &Member, _: &[PartitionId]) -> Done {
        member.inner.pause(&[]).await
    }
}

#[derive(Debug, Default)]
struct ForgetsThatItLeft;
#[async_trait]
impl Sabotage for ForgetsThatItLeft {
    async fn pause(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        match member.inner.pause(partitions).await {
            Err(MessageBusError::Closed) => Ok(()),
            other => other,
        }
    }
}

#[derive(Debug, Default)]
struct KeepsGroups;
#[async_trait]
impl Sabotage for KeepsGroups {
    async fn delete_group(&self, _: &InMemoryMessageBus, _: &str) -> Done {
        Ok(())
    }
}

/// Admits only the first member to a group.
#[derive(Debug, Default)]
struct GivesEachAGroup(Mutex<BTreeSet<String>>);
#[async_trait]
impl Sabotage for GivesEachAGroup {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        if !self.0.lock().unwrap().insert(subscription.group.clone()) {
            subscription.group.push_str(&CommitId::random().to_string());
        }
        subscription
    }
}

/// Reports a revocation after it is over.
#[derive(Debug, Default)]
struct RevokesAtOnce;
#[async_trait]
impl Sabotage for RevokesAtOnce {
    async fn next(&self, member: &Member) -> Next {
        Ok(match member.inner.next().await? {
            ConsumerEvent::Revoking(revocation) => {
                let (partitions, grace) = (revocation.partitions().to_vec(), revocation.grace());
                drop(revocation);
                ConsumerEvent::Revoking(Revocation::new(partitions, grace, || {}))
            }
            other => other,
        })
    }
}

/// Claims to have left, and lets the others wait for the end of the session.
#[derive(Debug, Default)]
struct LeavesWhenDropped;
impl LeavesWhenDropped {
    fn is_in(member: &Member) -> Done {
        match member.notes.lock().unwrap().has_left {
            true => Err(MessageBusError::Closed),
            false => Ok(()),
        }
    }
}
#[async_trait]
impl Sabotage for LeavesWhenDropped {
    async fn next(&self, member: &Member) -> Next {
        Self::is_in(member)?;
        member.inner.next().await
    }
    async fn commit(&self, member: &Member, commits: &[OffsetCommit]) -> Done {
        Self::is_in(member)?;
        member.inner.commit(commits).await
    }
    async fn pause(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        Self::is_in(member)?;
        member.inner.pause(partitions).await
    }
    async fn resume(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        Self::is_in(member)?;
        member.inner.resume(partitions).await
    }
    async fn leave(&self, member: &Member) -> Done {
        member.notes.lock().unwrap().has_left = true;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct RemembersPauses;
#[async_trait]
impl Sabotage for RemembersPauses {
    async fn next(&self, member: &Member) -> Next {
        let event = member.inner.next().await?;
        if let ConsumerEvent::Assigned(_) = &event {
            let paused: Vec<_> = {
                let notes = member.notes.lock().unwrap();
                notes.paused.iter().cloned().collect()
            };
            member.inner.pause(&paused).await?;
        }
        Ok(event)
    }
    async fn pause(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        let paused = partitions.iter().cloned();
        member.notes.lock().unwrap().paused.extend(paused);
        member.inner.pause(partitions).await
    }
    async fn resume(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        let resumed = |p: &PartitionId| partitions.contains(p);
        member.notes.lock().unwrap().paused.retain(|p| !resumed(p));
        member.inner.resume(partitions).await
    }
}

/// Takes a member without partitions for a dead one.
#[derive(Debug, Default)]
struct ExpelsIdleMembers;
#[async_trait]
impl Sabotage for ExpelsIdleMembers {
    async fn next(&self, member: &Member) -> Next {
        let event = loop {
            match timeout(Duration::from_secs(2), member.inner.next()).await {
                Ok(event) => break event?,
                Err(_) => {
                    let notes = member.notes.lock().unwrap();
                    if !notes.owned.is_empty() && notes.owned.is_subset(&notes.paused) {
                        member.bus.expel(&member.group);
                    }
                }
            }
        };
        if let ConsumerEvent::Assigned(assignment) = &event {
            let added = assignment.partitions.iter().map(|a| a.partition.clone());
            member.notes.lock().unwrap().owned.extend(added);
        }
        Ok(event)
    }
    async fn pause(&self, member: &Member, partitions: &[PartitionId]) -> Done {
        let paused = partitions.iter().cloned();
        member.notes.lock().unwrap().paused.extend(paused);
        member.inner.pause(partitions).await
    }
}
