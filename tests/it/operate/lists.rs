//! Lists: processors, parked streams, dead letters.
use super::world::{World, address, hex, page, stream};
use foldstream::{
    Bytes, Timestamp,
    operate::{
        InstanceState, LetterBody, LetterClass, LetterKey, OperateError, Operator, ParkedState,
    },
    ports::{Message, MessageBus, Offset, PartitionId},
};
use foldstream_testkit::{
    InMemoryMessageBus,
    faults::{Fault, Op},
};
use std::{collections::BTreeSet, time::Duration};

#[tokio::test]
async fn dead_letters_are_listed_across_processors_without_knowing_a_stream_and_the_list_pages() {
    let world = World::new(3).await;
    world.processor("mailing").await;
    world.processor("idle").await;
    for n in 0..25_u64 {
        let partition = u32::try_from(n % 3).unwrap();
        world.letter(partition, &format!("b{n}"), n + 1, 1).await;
        let sort = format!("cart#m{n}\u{1f}{n:020}");
        world.letter_of("mailing", partition, &sort, 2).await;
    }
    world
        .letter_of("mailing", 1, &format!("!\u{1f}{:020}", 41), 3)
        .await;
    // Backends return empty pages, too.
    world.faults.set([Fault::EmptyPage.on(Op::Range).every(3)]);
    let operator = world.operator();
    for limit in [1, 4, 1000] {
        let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
        loop {
            let list = operator
                .all_letters(after.as_ref(), page(limit))
                .await
                .unwrap();
            assert!(list.items.len() <= limit as usize);
            found.extend(list.items.into_iter().map(|letter| letter.address));
            pages += 1;
            // A cursor comes from another process as text.
            after = list.next.map(|cursor| cursor.to_string().parse().unwrap());
            if after.is_none() {
                break;
            }
        }
        let distinct: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!((found.len(), distinct.len()), (51, 51), "limit {limit}");
        assert!(pages >= 51 / limit as usize);
    }
    let of_one = operator.letters("mailing", None, page(1000)).await.unwrap();
    assert_eq!(of_one.items.len(), 26);
    let records = of_one
        .items
        .iter()
        .filter(|letter| letter.address.key.stream().is_none());
    let records: Vec<_> = records.map(|letter| letter.address.key.clone()).collect();
    assert_eq!(records, [LetterKey::Record(Offset::new(41))]);
    let none = operator.letters("idle", None, page(10)).await.unwrap();
    assert!(none.items.is_empty() && none.next.is_none());
}

#[tokio::test]
async fn a_long_list_of_empty_partitions_ends() {
    let world = World::new(500).await;
    world.letter(499, "a", 1, 1).await;
    let (operator, mut after, mut found) = (world.operator(), None, 0);
    for pages in 1.. {
        let list = operator
            .letters("billing", after.as_ref(), page(10))
            .await
            .unwrap();
        found += list.items.len();
        after = list.next;
        if after.is_none() {
            assert!(pages > 1, "a page costs a bounded number of reads");
            break;
        }
    }
    assert_eq!(found, 1);
}

#[tokio::test]
async fn letters_are_grouped_by_fingerprint_the_largest_group_first() {
    let world = World::new(2).await;
    for version in 1..=3 {
        world.letter(0, "a", version, 1).await;
    }
    world.letter(1, "b", 9, 2).await;
    let operator = world.operator();
    for processor in [Some("billing"), None] {
        let groups = operator.letter_groups(processor).await.unwrap();
        let sizes = groups
            .groups
            .iter()
            .map(|group| (group.fingerprint.to_string(), group.letters));
        assert_eq!(sizes.collect::<Vec<_>>(), [(hex(1), 3), (hex(2), 1)]);
        assert_eq!(groups.others, 0);
        let largest = &groups.groups[0];
        assert_eq!(
            largest.example.address,
            address("a", 3),
            "the one that failed last"
        );
        assert_eq!(largest.last, largest.example.head.last);
    }
}

#[tokio::test]
async fn a_letter_is_shown_whole() {
    let world = World::new(1).await;
    world.letter(0, "a", 7, 1).await;
    let operator = world.operator();
    let letter = operator.letter(&address("a", 7)).await.unwrap().unwrap();
    assert_eq!(
        (letter.head.class, letter.head.attempts),
        (LetterClass::Permanent, 3)
    );
    assert_eq!(letter.head.error, "card declined");
    let LetterBody::Record(record) = letter.body else {
        panic!("it came by the bus");
    };
    assert_eq!(record.offset, Offset::new(41));
    assert_eq!(record.message.value, Some(Bytes::from_static(b"yes")));
    assert_eq!(record.message.key, None);
    assert_eq!(operator.letter(&address("a", 8)).await.unwrap(), None);
}

#[tokio::test]
async fn parked_streams_are_listed_with_what_waits_and_who_is_at_work() {
    let world = World::new(2).await;
    world.park("a", 3, 9, 1).await;
    let job = hex(5);
    let row = format!(
        r#"{{"i":"{0}","f":4,"h":4,"s":"redriving","o":"host-1","b":"bob","j":"{job}","u":4,"p":"{0}","n":1,"t":7}}"#,
        hex(2)
    );
    world.put("park/billing/1/orders/1", "cart#b", &row).await;
    let row = format!(
        r#"{{"i":"{0}","f":1,"h":1,"s":"requested","b":"bob","p":"{0}","n":1,"t":7}}"#,
        hex(3)
    );
    world.put("park/billing/1/orders/1", "cart#c", &row).await;
    let list = world
        .operator()
        .parked("billing", None, page(10))
        .await
        .unwrap();
    assert_eq!(list.next, None);
    let [a, b, c] = &list.items[..] else {
        panic!("three streams: {list:?}");
    };
    assert_eq!(
        (a.stream.clone(), a.from.get(), a.high.get()),
        (stream("a"), 3, 9)
    );
    assert_eq!(
        (a.address(), a.state.clone()),
        (address("a", 3), ParkedState::Waiting)
    );
    assert_eq!(b.partition, PartitionId::new("orders", 1));
    assert_eq!(
        b.state,
        ParkedState::Redriving {
            owner: "host-1".into(),
            by: "bob".into(),
            job: Some(job.parse().unwrap()),
        }
    );
    let by = "bob".into();
    assert_eq!(c.state, ParkedState::Requested { by, job: None });
}

#[tokio::test]
async fn the_rows_of_a_generation_that_is_being_built_are_listed_too() {
    let world = World::new(1).await;
    let row = r#"{"a":1,"n":2,"st":"catch_up","s":false,"e":1,"m":3}"#;
    world.put("proc", "billing", row).await;
    world.letter(0, "a", 1, 1).await;
    let text = world.texts("dlq/billing/1/orders/0").await;
    world
        .put("dlq/billing/2/orders/0", &text[0].0, &text[0].1)
        .await;
    let list = world
        .operator()
        .letters("billing", None, page(10))
        .await
        .unwrap();
    let generations: Vec<_> = list.items.iter().map(|l| l.address.generation).collect();
    assert_eq!(generations, [1, 2]);
}

#[tokio::test]
async fn a_processor_is_shown_with_its_instances_until_they_are_silent_for_ten_minutes() {
    let world = World::new(1).await;
    let status = world.operator().processor("billing").await.unwrap();
    assert_eq!(
        (status.generation, status.model, &*status.state),
        (1, 3, "live")
    );
    assert_eq!(
        (status.instances.len(), status.lag, status.pause.clone()),
        (0, None, None)
    );
    assert!(!status.is_paused());
    let row = r#"{"l":"host-1","e":0,"g":1,"s":"halted","t":7,"c":"fatal","m":"no","r":9,"n":4}"#;
    world.put("inst/billing", &hex(8), row).await;
    let status = world.operator().processors().await.unwrap().remove(0);
    let [instance] = &status.instances[..] else {
        panic!("one instance");
    };
    assert_eq!(instance.state, InstanceState::Halted);
    assert_eq!(
        (instance.class, instance.error.as_deref()),
        (Some(LetterClass::Fatal), Some("no"))
    );
    assert_eq!(
        (instance.lag, instance.partitions, &*instance.label),
        (Some(9), 4, "host-1")
    );
}

#[tokio::test]
async fn the_lag_is_what_the_generation_has_not_committed_and_none_without_a_bus() {
    let world = World::new(2).await;
    let bus = InMemoryMessageBus::new();
    bus.create_topic("orders", 2);
    for n in 0..5 {
        let message = Message::new("orders", Timestamp::now()).with_value("x");
        bus.publish(&message.with_partition(n % 2)).await.unwrap();
    }
    let lag = async |operator: Operator| operator.processor("billing").await.unwrap().lag;
    let with_bus = || world.operator().with_bus(bus.clone(), "shop");
    assert_eq!(lag(with_bus()).await, None, "it has not started");
    let begun = |partition: u32| format!("orders/{partition:020}");
    world.put("boot/billing/1", "orders", r#"{"p":2}"#).await;
    world
        .put("boot/billing/1", &begun(0), r#"{"o":1,"s":false}"#)
        .await;
    world
        .put("boot/billing/1", &begun(1), r#"{"o":0,"s":false}"#)
        .await;
    // Three records in partition 0, of which it begins at the second; two in partition 1.
    assert_eq!(lag(with_bus()).await, Some(4));
    assert_eq!(lag(world.operator()).await, None);
    // While a replay runs, the generation that it has built is shown with its own lag.
    let row = r#"{"a":1,"n":2,"st":"catch_up","s":false,"e":1,"m":3,"r":"ab","nm":4}"#;
    world.put("proc", "billing", row).await;
    world.put("boot/billing/2", "orders", r#"{"p":2}"#).await;
    for (partition, offset) in [(0, 3), (1, 1)] {
        let boot = format!(r#"{{"o":{offset},"s":false}}"#);
        world.put("boot/billing/2", &begun(partition), &boot).await;
    }
    let inst = r#"{"l":"host-1","e":1,"g":1,"s":"running","t":7,"r":4,"n":2,"d":95000,"ng":2,"nr":1,"nm":"no"}"#;
    world.put("inst/billing", &hex(8), inst).await;
    let status = with_bus().processor("billing").await.unwrap();
    assert_eq!((status.lag, status.run.as_deref()), (Some(4), Some("ab")));
    let next = status.next.unwrap();
    assert_eq!((next.generation, next.model, next.lag), (2, 4, Some(1)));
    let [instance] = &status.instances[..] else {
        panic!("one instance");
    };
    assert_eq!(
        (instance.generation, instance.next_generation),
        (1, Some(2))
    );
    assert_eq!((instance.lag, instance.next_lag), (Some(4), Some(1)));
    assert_eq!(instance.next_error.as_deref(), Some("no"));
}

#[tokio::test]
async fn an_unknown_processor_is_an_error_that_names_the_known_ones() {
    let world = World::new(1).await;
    let operator = world.operator();
    for name in ["biling", ""] {
        let error = operator.letters(name, None, page(1)).await.unwrap_err();
        assert!(
            matches!(error, OperateError::UnknownProcessor { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("known are billing"), "{error}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn an_unreachable_store_is_a_transient_error() {
    let world = World::new(1).await;
    world.faults.set([Fault::Unavailable.anywhere()]);
    let error = world.operator().processors().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    world.clock.advance(Duration::from_secs(1));
}
