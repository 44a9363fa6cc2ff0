//! Public and private events, and publishers with names.
use super::{
    v,
    world::{TOPIC, World, stream},
};
use foldstream::{
    DomainEvent, Recorded, RecordedEvent,
    adapter::from_message,
    publisher::{
        Outbox, OutboxError, PollConfig, PollError, PublicEvent, Publication, PublishError,
        TopicRoute, TypedOutbox,
    },
};
use foldstream_testkit::intercept::async_trait;
use std::sync::Arc;

/// Decides by the name of an event.
#[derive(Clone, Copy, Debug)]
struct ByName;

#[async_trait]
impl Outbox for ByName {
    async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError> {
        Ok(match event.header.name.as_str() {
            "Secret" => Publication::Private,
            "Old" => Publication::As(PublicEvent::new("New", 4, r#"{"public":true}"#)),
            "Odd" => {
                let reason = "no public form".into();
                return Err(OutboxError::Refused { reason });
            }
            "Panics" => panic!("an outbox of the user"),
            _ => Publication::AsStored,
        })
    }
}

#[tokio::test]
async fn private_events_are_left_out_and_the_next_record_says_so() {
    let world = World::new();
    let a = stream("a");
    for names in [
        &["Secret", "Added", "Added"][..],
        &["Secret"],
        &["Added", "Secret", "Secret", "Added", "Secret"],
    ] {
        world.append_named(&a, names).await;
        // Each time another process goes on by the watermark's row alone.
        let publisher = world.publisher().with_outbox(ByName);
        let report = publisher.publish_pending().await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
    }
    let explained = [(2, Some(0)), (3, None), (5, Some(3)), (8, Some(5))];
    assert_eq!(world.explained(&a), explained);
    let mark = world.watermark(&a).await.unwrap().value;
    assert_eq!((mark.version, mark.last_record()), (v(9), v(8)));
    assert_eq!(world.unpublished().await, []);
}

#[tokio::test]
async fn a_stream_of_private_events_has_its_watermark_at_its_tail() {
    let world = World::new();
    let a = stream("a");
    let publisher = world.publisher().with_outbox(ByName);
    for n in 0..250 {
        let commit = world.append_named(&a, &["Secret", "Secret"]).await;
        if n == 0 {
            assert!(publisher.publish([commit]).await.failed.is_empty());
        }
    }
    let report = publisher.publish_pending().await.unwrap();
    assert_eq!((report.messages, report.failed.len()), (0, 0));
    let mark = world.watermark(&a).await.unwrap().value;
    assert_eq!((mark.version, mark.last_record()), (v(500), v(0)));
    // Not every commit costs a write.
    assert!(world.network.marks() <= 5, "{}", world.network.marks());
    world.append_named(&a, &["Added"]).await;
    publisher.publish_pending().await.unwrap();
    assert_eq!(world.explained(&a), [(501, Some(0))]);
}

#[tokio::test]
async fn an_event_is_published_under_another_name_and_payload() {
    let world = World::new();
    let a = stream("a");
    let commit = world.append_named(&a, &["Old", "Added"]).await;
    let publisher = world.publisher().with_outbox(ByName);
    publisher.publish_pending().await.unwrap();
    let records = world.network.records(&a);
    let stored: Vec<_> = commit.recorded().collect();
    let public = from_message(&records[0]).unwrap();
    assert_eq!(public.header.name.as_str(), "New");
    assert_eq!(public.header.schema_version, 4);
    assert_eq!(public.payload, r#"{"public":true}"#);
    assert_eq!(public.header.event_id, stored[0].header.event_id);
    assert_eq!(public.header.version, v(1));
    assert_eq!(from_message(&records[1]).unwrap(), stored[1]);
}

#[tokio::test]
async fn an_event_without_a_public_form_stops_its_stream_and_no_other() {
    for bad in ["Odd", "Panics"] {
        let world = World::new();
        world.append_named(&stream("a"), &["Added"]).await;
        world.append_named(&stream("a"), &["Added", bad]).await;
        world.append_named(&stream("b"), &["Added"]).await;
        let publisher = world.publisher().with_outbox(ByName);
        let report = publisher.publish_pending().await.unwrap();
        let failure = &report.failed[0];
        assert!(
            matches!(&failure.error, PublishError::Outbox { version, .. } if *version == v(3)),
            "{report:?}"
        );
        assert!(failure.is_dirty && !failure.error.is_transient());
        // Nothing of its commit is sent.
        assert_eq!(world.explained(&stream("a")), [(1, None)]);
        assert_eq!(world.explained(&stream("b")), [(1, None)]);
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CartEvent {
    Added { sku: u32, margin: u32 },
    Checked,
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum PublicCartEvent {
    ItemAdded { sku: u32 },
}

#[tokio::test]
async fn a_typed_outbox_decides_about_decoded_events() {
    let world = World::new();
    let a = stream("a");
    let payload = |sku| format!(r#"{{"sku":{sku},"margin":3}}"#);
    world.append_payloads(&a, &[payload(1), payload(2)]).await;
    world.append_named(&a, &["Checked"]).await;
    world.append_payloads(&a, &[payload(4)]).await;
    let outbox = TypedOutbox::new(|event: &Recorded<CartEvent>| match &event.event {
        CartEvent::Added { sku, .. } if event.header.version != v(2) => {
            Publication::of(PublicCartEvent::ItemAdded { sku: *sku })
        }
        _ => Ok(Publication::Private),
    });
    let publisher = world.publisher().with_outbox(outbox.unwrap());
    publisher.publish_pending().await.unwrap();
    assert_eq!(world.explained(&a), [(1, None), (4, Some(1))]);
    let records = world.network.records(&a);
    let last = from_message(&records[1]).unwrap();
    assert_eq!(last.header.name.as_str(), "ItemAdded");
    assert_eq!(last.payload, r#"{"sku":4}"#);
}

#[tokio::test]
async fn a_publisher_with_a_name_has_rows_of_its_own_and_leaves_the_markers() {
    let world = World::new();
    let a = stream("a");
    world.bus.create_topic("all.cart", 2);
    let commit = world.append_named(&a, &["Secret", "Added"]).await;
    let all = world
        .publisher()
        .with_name("all".parse().unwrap())
        .with_route(TopicRoute::ByAggregate {
            prefix: "all.".into(),
        });
    assert_eq!(all.publish([commit.clone()]).await.messages, 2);
    assert_eq!(world.watermark(&a).await, None);
    assert_eq!(world.unpublished().await, [commit.key()]);
    let ended = all
        .poll(PollConfig::default(), std::future::pending())
        .await;
    assert!(matches!(ended, Err(PollError::Named { .. })));

    let public = world.publisher().with_outbox(ByName);
    assert_eq!(public.publish_pending().await.unwrap().messages, 1);
    assert_eq!(world.unpublished().await, []);
    assert_eq!(all.publish([commit]).await.messages, 0);
    let topics = world.network.records(&a);
    let topics: Vec<_> = topics.iter().map(|m| Arc::clone(&m.topic)).collect();
    assert_eq!(
        topics.iter().map(|t| &**t).collect::<Vec<_>>(),
        ["all.cart", "all.cart", TOPIC]
    );
}
