use super::*;
use crate::ports::{Offset, Row};

fn items() -> [Item; 3] {
    let stream = StreamId::new("cart", "a").unwrap();
    let partition = PartitionId::new("orders", 2);
    let item = |target| Item {
        partition: partition.clone(),
        target,
        events: 3,
        state: ItemState::Waiting,
        seen: None,
        handled: 0,
    };
    let parked = ItemTarget::Stream {
        stream: stream.clone(),
        id: ParkId::from_u128(1),
        from: Version::new(2),
        high: Version::new(4),
    };
    let id = LetterId::from_u128(2);
    let key = LetterKey::event(stream, Version::new(7));
    let letter = ItemTarget::Letter { key, id };
    let key = LetterKey::Record(Offset::new(9));
    let record = ItemTarget::Letter { key, id };
    [item(parked), item(letter), item(record)]
}

#[test]
fn the_stored_form_of_a_job_is_fixed_and_fields_of_newer_builds_are_kept() {
    let mut row = JobRow::new(1, "all".into(), "ann", "fixed", Timestamp::from_micros(7));
    let text = r#"{"s":"selecting","g":1,"w":"all","b":"ann","y":"fixed","t":7,"p":0,"c":0,"n":0,"e":0,"d":0,"x":0,"o":0,"h":0}"#;
    assert_eq!(serde_json::to_string(&row).unwrap(), text);
    row.rate = Some(50);
    row.counts.handled = 4;
    let text = r#"{"s":"running","g":1,"w":"all","b":"ann","y":"fixed","t":7,"r":50,"p":0,"c":0,"n":0,"e":0,"d":0,"x":0,"o":0,"h":4}"#;
    let running = row.in_state(JobState::Running);
    assert_eq!(serde_json::to_string(&running).unwrap(), text);
    assert_eq!(serde_json::from_str::<JobRow>(text).unwrap(), running);
    let newer = text.replace(r#""h":4"#, r#""h":4,"zz":1"#);
    let read: JobRow = serde_json::from_str(&newer).unwrap();
    let written = serde_json::to_string(&read.in_state(JobState::Done)).unwrap();
    assert_eq!(written, newer.replace("running", "done"));
}

#[test]
fn the_stored_form_of_a_page_of_items_is_fixed_and_unknown_fields_are_refused() {
    let [parked, mut letter, record] = items();
    letter.state = ItemState::Asked;
    letter.seen = Some(Revision::from_u128(3));
    let id = |n: u128| format!("{n:032x}");
    let page = ItemPage {
        items: vec![parked, letter, record],
    };
    let text = format!(
        r#"{{"i":[{{"t":"orders","p":2,"s":"cart#a","i":"{}","f":2,"h":4,"e":3,"o":"waiting","d":0}},{{"t":"orders","p":2,"s":"cart#a\u001f00000000000000000007","i":"{}","e":3,"o":"asked","v":"{}","d":0}},{{"t":"orders","p":2,"s":"!\u001f00000000000000000009","i":"{}","e":3,"o":"waiting","d":0}}]}}"#,
        id(1),
        id(2),
        id(3),
        id(2)
    );
    assert_eq!(serde_json::to_string(&page).unwrap(), text);
    assert_eq!(serde_json::from_str::<ItemPage>(&text).unwrap(), page);
    for odd in [
        text.replace(r#""t":"orders""#, r#""t":"orders","zz":1"#),
        text.replace("]}", r#"],"zz":1}"#),
    ] {
        assert!(serde_json::from_str::<ItemPage>(&odd).is_err());
    }
}

#[test]
fn a_page_of_the_longest_items_fits_into_a_row() {
    let [mut item, ..] = items();
    let id = "\"".repeat(StreamId::MAX_LEN - 65);
    item.partition = PartitionId::new("t".repeat(249), u32::MAX);
    item.target = ItemTarget::Stream {
        stream: StreamId::new(&"a".repeat(64), &id).unwrap(),
        id: ParkId::from_u128(u128::MAX),
        from: Version::new(u64::MAX),
        high: Version::new(u64::MAX),
    };
    item.events = u64::MAX;
    item.handled = u64::MAX;
    item.seen = Some(Revision::from_u128(u128::MAX));
    let page = ItemPage {
        items: vec![item; ItemPage::ITEMS],
    };
    let bytes = serde_json::to_vec(&page).unwrap().len();
    assert!(bytes <= Row::MAX_VALUE, "{bytes}");
}
