//! The contract of [`MessageBus`] and its [`Consumer`](foldstream::ports::Consumer), case by case.
mod crowd;
mod deliver;
mod given;
mod holes;
mod own;
mod publish;
mod recreate;
mod runs;
mod share;
mod static_members;

use super::run::{Case, collect_cases, publish_cases};
use async_trait::async_trait;
use foldstream::ports::{MessageBus, Offset, PartitionId};
use std::{future::Future, sync::Arc, time::Duration};

/// A bus, and the tasks of its administrator, which are not part of the port.
#[async_trait]
pub trait BusFixture: Send + Sync + 'static {
    /// Returns the bus under test. All calls of one case use this bus or clones of it.
    fn bus(&self) -> Arc<dyn MessageBus>;

    /// Creates a topic that keeps its records, and returns after the topic can be used.
    async fn create_topic(&self, name: &str, partitions: u32);

    /// Deletes the records before an offset, as retention does, and returns after they are gone.
    /// Required only of adapters that declare `trim`.
    async fn delete_records_before(&self, partition: &PartitionId, offset: Offset) {
        panic!("this fixture declares `trim` but cannot delete {partition} before {offset}");
    }

    /// Adds partitions to a topic, up to this number, and returns after the bus shows them.
    /// Required only of adapters that declare `grow`.
    async fn add_partitions(&self, name: &str, partitions: u32) {
        panic!("this fixture declares `grow` but cannot give {name} {partitions} partitions");
    }

    /// Moves the end of a partition past one or more offsets that hold nothing to deliver, as an
    /// aborted transaction does.
    ///
    /// Returns after the bus shows the new end. Required only of adapters that declare `holes`.
    async fn leave_hole(&self, partition: &PartitionId) {
        panic!("this fixture declares `holes` but cannot leave one in {partition}");
    }

    /// Deletes a topic, creates it again under the same name, and returns after it can be used.
    /// Required only of adapters that declare `recreate`.
    async fn recreate_topic(&self, name: &str, partitions: u32) {
        panic!("this fixture declares `recreate` but cannot do so with {name} ({partitions})");
    }

    /// Returns the time after which an absent static member loses its partitions.
    ///
    /// It must be at least 2 s, so that a case can tell a member that keeps its partitions from one
    /// whose session has expired. Required only of adapters that declare `static_members`.
    fn session_timeout(&self) -> Duration {
        panic!("this fixture declares `static_members` but names no session timeout");
    }
}

/// The only list of the cases of the [`MessageBus`](foldstream::ports::MessageBus) contract, by
/// group.
#[doc(hidden)]
#[macro_export]
macro_rules! __message_bus_cases {
    (always, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context always [
            publish::offsets_count_every_published_message,
            publish::messages_of_one_key_have_rising_offsets_in_the_keys_partition,
            publish::a_message_goes_to_the_partition_that_it_names,
            publish::a_message_without_key_and_partition_is_invalid,
            publish::a_partition_that_the_topic_lacks_is_refused,
            publish::messages_published_at_once_have_places_of_their_own,
            publish::messages_published_while_a_member_reads_are_delivered_once,
            publish::a_missing_topic_is_refused_and_never_made,
            publish::a_name_that_no_topic_can_have_is_invalid,
            publish::a_timestamp_that_the_bus_cannot_keep_is_invalid,
            publish::a_message_over_the_limit_is_too_large,
            publish::a_topic_is_described_with_its_partitions,
            publish::an_unknown_group_has_committed_nothing,
            runs::a_run_is_durable_in_its_order,
            runs::an_empty_run_is_durable_at_once,
            runs::a_run_of_mixed_messages_is_invalid_and_sends_nothing,
            runs::a_run_that_breaks_off_is_durable_up_to_some_message,
            runs::a_dropped_run_leaves_a_first_part_and_can_be_sent_again,
            runs::concurrent_runs_of_different_keys_each_keep_their_order,
            deliver::everything_of_a_message_arrives_as_sent,
            deliver::each_group_gets_all_messages,
            deliver::an_assignment_comes_before_the_first_delivery,
            deliver::deliveries_of_a_partition_are_in_order_without_repeats,
            deliver::a_subscription_of_several_topics_gets_all_of_them,
            deliver::a_partition_starts_at_the_committed_offset_else_at_its_start_offset,
            deliver::a_partition_without_position_is_missing_and_delivers_nothing,
            deliver::a_position_after_the_end_is_out_of_range,
            deliver::what_is_not_committed_comes_again,
            deliver::a_dropped_next_loses_nothing,
            own::a_name_that_no_group_can_have_is_invalid,
            own::a_commit_is_stored_when_it_returns,
            own::a_commit_under_another_epoch_is_stale_and_stores_nothing,
            own::a_paused_partition_delivers_nothing_and_continues_without_a_gap,
            own::after_leave_everything_is_closed,
            own::next_waits_for_what_comes,
            share::members_share_the_partitions_and_each_message_goes_to_one,
            share::a_commit_during_a_revocation_counts,
            share::a_commit_after_the_partition_has_moved_is_stale,
            share::a_leaving_members_partitions_go_to_the_others,
            share::a_pause_ends_with_its_assignment,
            share::a_member_that_has_paused_everything_stays_in_the_group,
        ] }
    };
    (trim, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context trim [
            deliver::a_position_that_retention_has_passed_is_out_of_range,
        ] }
    };
    (grow, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context grow [
            publish::a_topic_that_grows_moves_no_message_that_names_its_partition,
        ] }
    };
    (holes, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context holes [
            holes::a_position_reaches_the_end_after_a_hole,
            holes::records_after_a_hole_are_delivered,
            holes::a_paused_partition_reaches_nothing,
            holes::a_reached_offset_can_be_committed,
        ] }
    };
    (recreate, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context recreate [
            recreate::a_recreated_topic_has_no_committed_offsets,
            recreate::a_running_member_never_continues_in_a_recreated_topic,
            recreate::a_recreated_topic_has_another_id,
        ] }
    };
    (static_members, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context static_members [
            static_members::a_static_member_that_comes_back_gets_its_partitions,
            static_members::a_static_member_that_stays_away_loses_its_partitions,
            static_members::of_two_members_with_one_instance_id_one_is_refused,
            static_members::an_instance_id_that_no_member_can_have_is_invalid,
        ] }
    };
    (delete_group, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context delete_group [
            own::a_deleted_group_is_forgotten,
        ] }
    };
}

__message_bus_cases! { always, [publish_cases] {} }
__message_bus_cases! { trim, [publish_cases] {} }
__message_bus_cases! { grow, [publish_cases] {} }
__message_bus_cases! { holes, [publish_cases] {} }
__message_bus_cases! { recreate, [publish_cases] {} }
__message_bus_cases! { static_members, [publish_cases] {} }
__message_bus_cases! { delete_group, [publish_cases] {} }

/// Returns all cases of all groups.
pub fn cases() -> Vec<Case<Arc<dyn BusFixture>>> {
    let mut list = Vec::new();
    __message_bus_cases! { always, [collect_cases] { list } }
    __message_bus_cases! { trim, [collect_cases] { list } }
    __message_bus_cases! { grow, [collect_cases] { list } }
    __message_bus_cases! { holes, [collect_cases] { list } }
    __message_bus_cases! { recreate, [collect_cases] { list } }
    __message_bus_cases! { static_members, [collect_cases] { list } }
    __message_bus_cases! { delete_group, [collect_cases] { list } }
    list
}

#[doc(hidden)]
pub async fn ready<F: BusFixture>(fresh: impl Future<Output = F>) -> Arc<dyn BusFixture> {
    Arc::new(fresh.await)
}

/// Generates one `#[test]` per rule of the [`MessageBus`](foldstream::ports::MessageBus) contract.
///
/// `bus` is an `async fn() -> impl BusFixture` (see
/// [`BusFixture`](crate::contract::message_bus::BusFixture)), called once per test in the test's
/// own runtime. Attributes before `bus` are put on every test. `with` declares what the fixture and
/// its server can do:
/// - `trim`: delete old records, as retention does;
/// - `grow`: add partitions to a topic;
/// - `holes`: leave offsets without records, as transactions do;
/// - `recreate`: delete a topic and create it again;
/// - `static_members`: keep the partitions of a member with an instance id while it is away;
/// - `delete_group`: forget a group (embedded servers often cannot).
///
/// Cases wait up to 40 s for a group. Most take as long as the backend takes to let a member join.
///
/// # Example
/// ```
/// # #[allow(dead_code)]
/// mod message_bus {
///     use foldstream::ports::MessageBus;
///     use foldstream_testkit::{InMemoryMessageBus, contract::message_bus::BusFixture};
///     use std::sync::Arc;
///
///     struct Fixture(Arc<InMemoryMessageBus>);
///
///     #[async_trait::async_trait]
///     impl BusFixture for Fixture {
///         fn bus(&self) -> Arc<dyn MessageBus> {
///             self.0.clone()
///         }
///         async fn create_topic(&self, name: &str, partitions: u32) {
///             self.0.create_topic(name, partitions);
///         }
///     }
///
///     async fn fresh() -> Fixture {
///         Fixture(InMemoryMessageBus::new())
///     }
///     foldstream_testkit::message_bus_contract! { bus = fresh, with = [delete_group] }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! message_bus_contract {
    ($(#[$attribute:meta])* bus = $bus:path $(, with = [$($group:ident),* $(,)?])? $(,)?) => {
        $crate::message_bus_contract! {
            @cases { message_bus $bus; $(#[$attribute])* } always $($($group)*)?
        }
    };
    (@cases $context:tt $($group:ident)*) => {
        $crate::__contract_report! { $context $($group)* }
        $($crate::__message_bus_cases! { $group, [$crate::__contract_tests] $context })*
    };
}
