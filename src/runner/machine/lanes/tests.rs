use super::super::testing::{partition, record, stream};
use super::*;

fn key(id: &str) -> LaneKey {
    LaneKey::Stream(stream(id))
}
fn lanes(records: &[(&str, u64)]) -> Lanes {
    let mut lanes = Lanes::default();
    for (id, offset) in records {
        lanes.push(&key(id), record(0, *offset, id, *offset));
    }
    lanes
}
fn next(lanes: &mut Lanes, most: usize) -> Option<(LaneKey, Vec<u64>)> {
    let Started { key, records, .. } = lanes.start_next(most, |_, _| true)?;
    Some((key, records.iter().map(|r| r.offset.get()).collect()))
}

#[test]
fn a_lane_runs_one_attempt_at_a_time_in_order() {
    let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
    assert_eq!(next(&mut lanes, 1), Some((key("a"), vec![1])));
    assert_eq!(next(&mut lanes, 1), Some((key("b"), vec![3])));
    assert_eq!(next(&mut lanes, 1), None);
    lanes.finished(&key("a"), 1);
    assert_eq!(next(&mut lanes, 1), Some((key("a"), vec![2])));
}

#[test]
fn neighbours_of_one_partition_run_together() {
    let mut lanes = lanes(&[("a", 1), ("a", 2), ("a", 3)]);
    lanes.push(&key("a"), record(1, 9, "a", 4));
    assert_eq!(next(&mut lanes, 2), Some((key("a"), vec![1, 2])));
    lanes.finished(&key("a"), 1);
    assert_eq!(next(&mut lanes, 9), Some((key("a"), vec![2, 3])));
    lanes.finished(&key("a"), 2);
    assert_eq!(next(&mut lanes, 9), Some((key("a"), vec![9])));
}

#[test]
fn a_waiting_lane_blocks_only_itself_and_keeps_its_head() {
    let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
    let now = Instant::now();
    next(&mut lanes, 1);
    lanes.wait(&key("a"), Retry::testing(), now, true);
    assert_eq!(next(&mut lanes, 1), Some((key("b"), vec![3])));
    assert_eq!(next(&mut lanes, 1), None);
    assert_eq!(lanes.wake_at(), Some(now));
    lanes.wake(now);
    // The head that failed is tried alone.
    assert_eq!(next(&mut lanes, 5), Some((key("a"), vec![1])));
}

#[test]
fn lanes_that_wait_are_found_for_a_probe_although_they_were_ready_before() {
    let mut lanes = lanes(&[("a", 1), ("b", 2)]);
    let now = Instant::now();
    let later = now + Duration::from_secs(3600);
    for id in ["a", "b"] {
        next(&mut lanes, 1);
        lanes.finished(&key(id), 0);
        lanes.wait(&key(id), Retry::testing(), later, true);
    }
    lanes.wake_one_for_probe(Some(&key("a")), now);
    assert_eq!(next(&mut lanes, 1), Some((key("b"), vec![2])));
    assert_eq!(next(&mut lanes, 1), None, "one is enough");
}

#[test]
fn what_is_put_back_comes_after_a_head_that_has_failed() {
    let mut lanes = lanes(&[("a", 1), ("a", 2)]);
    next(&mut lanes, 1);
    let now = Instant::now();
    lanes.wait(&key("a"), Retry::testing(), now, true);
    let of_a = |offset| record(0, offset, "a", offset);
    lanes.push(&key("a"), of_a(5));
    lanes.put_back(&key("a"), vec![of_a(3), of_a(4)]);
    // Its pause and its failures stay.
    assert_eq!(next(&mut lanes, 9), None);
    assert!(lanes.retries().next().is_some());
    lanes.wake(now);
    assert_eq!(next(&mut lanes, 9), Some((key("a"), vec![1])));
    lanes.finished(&key("a"), 1);
    assert_eq!(next(&mut lanes, 9), Some((key("a"), vec![2, 3, 4, 5])));
}

#[test]
fn a_lane_whose_handler_was_not_called_waits_out_its_pause_before_it_is_a_probe() {
    let mut lanes = lanes(&[("a", 1)]);
    let now = Instant::now();
    let later = now + Duration::from_secs(60);
    next(&mut lanes, 1);
    lanes.wait(&key("a"), Retry::testing(), later, false);
    lanes.wake_one_for_probe(None, now);
    assert_eq!(next(&mut lanes, 1), None);
    assert_eq!(lanes.next_pause(now), Some(later));
    lanes.wake_one_for_probe(None, later);
    assert_eq!(next(&mut lanes, 1), Some((key("a"), vec![1])));
    assert_eq!(lanes.next_pause(later), None);
}

#[test]
fn dropping_a_partition_keeps_what_runs_and_other_partitions() {
    let mut lanes = lanes(&[("a", 1), ("a", 2), ("b", 3)]);
    lanes.push(&key("c"), record(1, 4, "c", 4));
    next(&mut lanes, 1);
    lanes.drop_queued(&HashSet::from([partition(0)]));
    assert_eq!(next(&mut lanes, 1), Some((key("c"), vec![4])));
    lanes.finished(&key("a"), 1);
    lanes.finished(&key("c"), 1);
    assert!(lanes.lanes.is_empty());
}
