use super::*;
use crate::{
    Clock, Timestamp,
    control::{
        Rows,
        test_store::{Lost, TestStore},
    },
    ports::{Offset, PartitionId},
};
use std::{collections::BTreeMap, time::Duration};

const RUN: RunId = RunId::from_u128(10);
const RUN_TEXT: &str = "0000000000000000000000000000000a";

fn offsets(offsets: &[u64]) -> BTreeMap<PartitionId, Offset> {
    let numbered = (0..).zip(offsets);
    let of = |(n, offset): (u32, &u64)| (PartitionId::new("orders", n), Offset::new(*offset));
    numbered.map(of).collect()
}

fn processor(name: &str) -> RunProcessor {
    RunProcessor {
        name: name.into(),
        generation: 2,
        model: 1,
        is_switched: false,
    }
}

fn run_of(names: &[&str], filter: Option<RunFilter>) -> RunRow {
    let processors = names.iter().map(|name| processor(name)).collect();
    let at = Timestamp::from_micros(7);
    RunRow::new(processors, ReplayMode::BlueGreen, filter, 4, "ann", at)
}

#[test]
fn the_stored_form_of_a_run_is_fixed_and_fields_of_newer_builds_are_kept() {
    let row = run_of(&["carts"], None);
    let text = r#"{"s":"preparing","e":0,"p":[{"n":"carts","g":2,"m":1,"w":false}],"m":"blue_green","n":4,"b":"ann","t":7}"#;
    assert_eq!(serde_json::to_string(&row).unwrap(), text);
    let row = row.claimed(3).unwrap();
    let row = row.handed_over(&offsets(&[5, 0])).unwrap();
    let row = row.reset_done().unwrap().scanning().unwrap();
    let row = row.scanned(&offsets(&[9, 2])).unwrap();
    let text = r#"{"s":"catch_up","e":3,"p":[{"n":"carts","g":2,"m":1,"w":false}],"m":"blue_green","n":4,"b":"ann","t":7,"h":{"orders":[5,0]},"u":{"orders":[9,2]}}"#;
    assert_eq!(serde_json::to_string(&row).unwrap(), text);
    assert_eq!(serde_json::from_str::<RunRow>(text).unwrap(), row);
    assert_eq!(row.hand_over(), Some(offsets(&[5, 0])));
    assert_eq!(row.ends(), Some(offsets(&[9, 2])));
    let newer = text.replace(r#""e":3"#, r#""e":3,"zz":1"#);
    let read = serde_json::from_str::<RunRow>(&newer).unwrap();
    let kept = serde_json::to_value(read.cancelled().unwrap()).unwrap();
    assert_eq!(kept["zz"], 1);
    let filter = RunFilter {
        events: Some(vec!["Added".into()]),
        from: Some(Timestamp::from_micros(1)),
        ..RunFilter::default()
    };
    let text = serde_json::to_string(&run_of(&["carts"], Some(filter))).unwrap();
    assert!(text.contains(r#""f":{"e":["Added"],"f":1}"#), "{text}");
}

#[test]
fn the_stored_form_of_a_segment_is_fixed() {
    let row = SegmentRow {
        epoch: 3,
        cursor: Some("0a".into()),
        is_done: false,
        counts: SegmentCounts {
            commits: 2,
            events: 5,
            streams: 1,
            handled: 4,
            read_units: 1.5,
        },
    };
    let text = r#"{"e":3,"c":"0a","d":false,"k":2,"v":5,"m":1,"h":4,"u":1.5}"#;
    assert_eq!(serde_json::to_string(&row).unwrap(), text);
    assert_eq!(serde_json::from_str::<SegmentRow>(text).unwrap(), row);
    let newer = r#"{"e":3,"zz":0}"#;
    let read = serde_json::from_str::<SegmentRow>(newer).unwrap();
    assert_eq!((read.epoch, read.counts), (3, SegmentCounts::default()));
}

#[test]
fn a_run_takes_its_steps_in_order_and_none_twice() {
    let preparing = run_of(&["carts"], None);
    assert_eq!(preparing.reset_done(), None, "the hand-over comes first");
    assert_eq!(preparing.scanning(), None, "the reset comes first");
    assert_eq!(preparing.scanned(&offsets(&[1])), None);
    assert_eq!(preparing.filtered_done(), None);
    assert_eq!(preparing.switched("carts"), None);
    let handed_over = preparing.handed_over(&offsets(&[5])).unwrap();
    assert_eq!(handed_over.handed_over(&offsets(&[9])), None, "never later");
    let reset = handed_over.reset_done().unwrap();
    assert_eq!(reset.reset_done(), None);
    let scanning = reset.scanning().unwrap();
    assert_eq!(scanning.allocated("carts", 3), None, "the model is filled");
    assert_eq!(scanning.scanning(), None);
    let catching_up = scanning.scanned(&offsets(&[9])).unwrap();
    assert_eq!(catching_up.scanned(&offsets(&[9])), None);
    assert_eq!(catching_up.switched("other"), None);
    let done = catching_up.switched("carts").unwrap();
    assert_eq!(done.state, RunState::Done);
    assert_eq!((done.cancelled(), done.claimed(9)), (None, None));
}

#[test]
fn another_generation_starts_the_preparation_again_and_keeps_the_hand_over() {
    let row = run_of(&["carts"], None)
        .handed_over(&offsets(&[5]))
        .unwrap();
    let reset = row.reset_done().unwrap();
    let again = reset.allocated("carts", 3).unwrap();
    assert_eq!(again.state, RunState::Preparing);
    assert_eq!(again.processor("carts").unwrap().generation, 3);
    assert_eq!(again.hand_over(), Some(offsets(&[5])));
}

#[test]
fn a_filtered_run_never_hands_over() {
    let row = run_of(&["carts"], Some(RunFilter::default()));
    assert_eq!(row.handed_over(&offsets(&[5])), None);
    assert_eq!(row.allocated("carts", 3), None);
    let scanning = row.scanning().unwrap();
    assert_eq!(scanning.scanned(&offsets(&[5])), None);
    assert_eq!(scanning.filtered_done().unwrap().state, RunState::Done);
}

#[test]
fn a_run_is_done_once_all_have_switched_also_if_it_was_cancelled_too_late() {
    let row = run_of(&["carts", "sums"], None);
    let row = row.handed_over(&offsets(&[5])).unwrap();
    let row = row.reset_done().unwrap().scanning().unwrap();
    let row = row.scanned(&offsets(&[9])).unwrap();
    let one = row.switched("carts").unwrap();
    assert_eq!(one.state, RunState::CatchUp);
    assert_eq!(one.switched("carts"), None);
    let cancelled = one.cancelled().unwrap();
    assert_eq!(cancelled.state, RunState::Cancelled);
    assert_eq!(cancelled.switched("sums").unwrap().state, RunState::Done);
}

#[test]
fn a_state_of_a_newer_build_is_left_alone() {
    let text = r#"{"s":"dreaming","e":1,"p":[],"m":"blue_green","n":1,"b":"x","t":1}"#;
    let row = serde_json::from_str::<RunRow>(text).unwrap();
    assert_eq!(row.state, RunState::Unknown);
    assert_eq!((row.claimed(5), row.cancelled()), (None, None));
    assert!(!row.is_held(1));
}

#[tokio::test(start_paused = true)]
async fn a_robbed_holder_can_neither_move_the_run_nor_a_cursor() {
    let store = TestStore::new(7);
    let mut row = run_of(&["carts"], None);
    row.at = store.now();
    let rows = Rows::new(store.clone(), store.clone());
    let leases = Leases::new(store.clone(), store.clone(), Duration::from_secs(15));
    let mut first = leases.run_contender(RUN, "first");
    let lease = first.try_take().await.unwrap().unwrap();
    let created = rows.run_put(RUN, row, None).await;
    let PutIf::Written(created) = created.unwrap() else {
        panic!("nobody else has created it")
    };
    let claimed = created.value.claimed(lease.epoch()).unwrap();
    let claimed = rows.run_put(RUN, claimed, Some(created.revision)).await;
    let PutIf::Written(claimed) = claimed.unwrap() else {
        panic!("nobody else has claimed it")
    };
    let segment = SegmentRow {
        epoch: lease.epoch(),
        ..SegmentRow::default()
    };
    let of = (RUN, &claimed.value);
    let put = rows.segment_put(of, 0, segment.clone(), None).await;
    let PutIf::Written(at) = put.unwrap() else {
        panic!("nobody else has written it")
    };

    let mut second = leases.run_contender(RUN, "second");
    assert!(second.try_take().await.unwrap().is_none());
    tokio::time::advance(Duration::from_secs(16)).await;
    let robber = second.try_take().await.unwrap().unwrap();
    let found = rows.run(RUN).await.unwrap().unwrap();
    let taken = found.value.claimed(robber.epoch()).unwrap();
    let put = rows.run_put(RUN, taken.clone(), Some(found.revision)).await;
    assert!(matches!(put.unwrap(), PutIf::Written(_)));
    let claim = at.value.claimed(robber.epoch()).unwrap();
    let put = rows.segment_put((RUN, &taken), 0, claim, Some(at.revision));
    assert!(matches!(put.await.unwrap(), PutIf::Written(_)));

    // The first holder still believes that it holds the lease.
    let moved = claimed.value.handed_over(&offsets(&[5])).unwrap();
    let put = rows.run_put(RUN, moved, Some(claimed.revision)).await;
    let PutIf::Conflict(Some(now)) = put.unwrap() else {
        panic!("the former holder has moved the run")
    };
    assert!(!now.value.is_held(lease.epoch()));
    assert_eq!(now.value.claimed(lease.epoch()), None);
    let next = SegmentRow {
        cursor: Some("ff".into()),
        ..segment.clone()
    };
    let put = rows.segment_put((RUN, &taken), 0, next, Some(at.revision));
    let PutIf::Conflict(Some(kept)) = put.await.unwrap() else {
        panic!("the former holder has moved a cursor")
    };
    assert_eq!(kept.value.claimed(lease.epoch()), None);
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_answer_is_lost_is_taken_once() {
    let store = TestStore::new(7);
    let rows = Rows::new(store.clone(), store.clone());
    let mut row = run_of(&["carts"], None);
    row.at = store.now();
    store.lose([Lost::Reply]);
    let put = rows.run_put(RUN, row, None).await;
    assert!(matches!(put.unwrap(), PutIf::Written(_)));
    let page = rows.run_page(None).await.unwrap();
    assert_eq!(page.rows.len(), 1);
    assert_eq!(store.texts("run")[0].0, RUN_TEXT);
}
