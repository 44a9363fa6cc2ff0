//! Two builds of a service side by side, as during a rolling deployment: the newer one knows an
//! event that the older one does not.
use super::{Fleet, Polling, stored, until};
use foldstream_live::{AccountEvent, AccountId, Effects, Role};
use foldstream_testkit::containers::Kafka;
use std::{collections::BTreeMap, num::NonZeroU32};

const PROCESSOR: &str = "journal";
/// The streams of one phase. Each partition has some of them.
const STREAMS: usize = 24;

/// Appends to new streams: every other one has an event that only the newer build knows, with
/// another event before and after it.
async fn append(fleet: &Fleet, phase: &str) {
    use AccountEvent::{Deposited, Disputed, Withdrawn};
    let repository = fleet.repository();
    for n in 0..STREAMS {
        let id = AccountId::from(format!("{phase}-{n}"));
        let middle = match n % 2 {
            0 => Disputed { amount: 2 },
            _ => Withdrawn { amount: 2 },
        };
        let events = vec![Deposited { amount: 1 }, middle, Deposited { amount: 3 }];
        repository.execute(&id, events).await.unwrap();
    }
}

async fn parked(fleet: &Fleet) -> usize {
    let many = NonZeroU32::new(1_000).unwrap();
    let page = fleet.operator().parked(PROCESSOR, None, many).await;
    page.unwrap().items.len()
}

async fn has_caught_up(fleet: &Fleet) {
    let polled = fleet.publisher();
    let is_level = async || {
        let report = polled.publish_pending().await.unwrap();
        report.published.is_empty() && stored::lag(fleet, PROCESSOR).await == Some(0)
    };
    until("all events are published and committed", is_level).await;
}

/// Returns the number of partitions of each instance.
async fn partitions(fleet: &Fleet) -> BTreeMap<String, u32> {
    let status = fleet.operator().processor(PROCESSOR).await.unwrap();
    let instances = status.instances.into_iter();
    instances
        .map(|instance| (instance.label, instance.partitions))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn an_event_that_the_older_build_parks_is_handled_once_the_newer_one_has_taken_over() {
    let fleet = Fleet::open("builds", Kafka::shared().await.brokers(), 6).await;
    let polling = Polling::start(fleet.publisher());

    // The older build alone. It neither skips what it does not know, nor halts.
    let older = fleet.start(Role::OlderBuild, "older");
    append(&fleet, "before").await;
    has_caught_up(&fleet).await;
    assert_eq!(parked(&fleet).await, STREAMS / 2);

    // Both, each with some of the partitions.
    let mut newer = fleet.start(Role::NewerBuild, "newer");
    let share = async || {
        let partitions = partitions(&fleet).await;
        let of = |instance| partitions.get(instance).copied().unwrap_or(0);
        of("older") > 0 && of("newer") > 0 && of("older") + of("newer") == 6
    };
    until("both builds have partitions", share).await;
    append(&fleet, "during").await;
    has_caught_up(&fleet).await;
    let during = parked(&fleet).await;
    let of_both = STREAMS / 2..STREAMS;
    assert!(
        of_both.contains(&during),
        "{during} streams are parked: the newer build has handled none of its own"
    );
    // A redrive finds both builds. What the older one has, it cannot handle.
    let counts = fleet.redrive(PROCESSOR).await.counts;
    assert_eq!(counts.done + counts.failed, during as u64, "{counts:?}");
    assert!(counts.done > 0 && counts.failed > 0, "{counts:?}");

    // The newer build alone.
    older.stop().await;
    append(&fleet, "after").await;
    has_caught_up(&fleet).await;
    assert_eq!(parked(&fleet).await as u64, counts.failed);
    let last = fleet.redrive(PROCESSOR).await.counts;
    assert_eq!((last.done, last.failed), (counts.failed, 0), "{last:?}");
    let is_clean = async || stored::failed_events(&fleet).await.is_empty();
    until("nothing is parked or dead", is_clean).await;
    newer.assert_running();
    newer.stop().await;
    polling.stop().await;

    let mut firsts = BTreeMap::<String, Vec<u64>>::new();
    for effect in Effects::read(fleet.folder.path()) {
        let versions = firsts.entry(effect.stream).or_default();
        if !versions.contains(&effect.version) {
            versions.push(effect.version);
        }
    }
    assert_eq!(firsts.len(), 3 * STREAMS);
    for (stream, versions) in firsts {
        assert_eq!(versions, [1, 2, 3], "{stream}");
    }
}
