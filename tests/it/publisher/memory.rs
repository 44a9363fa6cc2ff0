//! The memory of a publisher is bounded, however much there is to publish.
use super::{
    poller::Polling,
    world::{World, stream},
};
use foldstream::publisher::PollConfig;
use foldstream_testkit::faults::{Call, Fault};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

#[tokio::test(start_paused = true)]
async fn a_hot_stream_is_read_no_further_ahead_than_a_run_and_two_pages() {
    const EVENTS: usize = 4;
    const PAGE: usize = 100 * EVENTS;
    let (world, hot) = (World::new(), stream("hot"));
    for _ in 0..5_000 {
        world.append(&hot, EVENTS).await;
    }
    let (reads, sent, most) = (AtomicUsize::new(0), AtomicUsize::new(0), Arc::default());
    let most: Arc<AtomicUsize> = most;
    let seen = most.clone();
    world.set_fates(move |call| {
        match call {
            Call::Read { .. } => {
                reads.fetch_add(1, SeqCst);
            }
            Call::Publish(_) => {
                sent.fetch_add(1, SeqCst);
            }
            _ => {}
        }
        let ahead = (reads.load(SeqCst) * PAGE).saturating_sub(sent.load(SeqCst));
        seen.fetch_max(ahead, SeqCst);
        None
    });
    let report = world.publisher().publish_stream(&hot).await;
    assert_eq!(report.messages, 20_000);
    let most = most.load(SeqCst);
    assert!(most > 1_000 && most <= 1_000 + 2 * PAGE, "{most}");
}

/// Returns the number of pages that a poller lists in ten minutes while the only stream is stuck
/// with this many commits.
async fn pages_listed_beside(commits: usize) -> usize {
    let world = World::new();
    for _ in 0..commits {
        world.append(&stream("hot"), 1).await;
    }
    let listed = Arc::new(AtomicUsize::new(0));
    let pages = listed.clone();
    world.set_fates(move |call| match call {
        Call::Unpublished { .. } => {
            pages.fetch_add(1, SeqCst);
            None
        }
        Call::Publish(_) => Some(Fault::Hang),
        _ => None,
    });
    let polling = Polling::start(&world, PollConfig::default());
    tokio::time::sleep(Duration::from_secs(600)).await;
    polling.task.abort();
    listed.load(SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_walk_passes_over_the_backlog_of_a_hot_stream() {
    let (short, long) = (
        pages_listed_beside(10).await,
        pages_listed_beside(5_000).await,
    );
    // The backlog fills 50 pages. One of eight segments has two pages instead of one.
    assert!(short > 1_000, "{short} pages");
    assert!(long < short * 5 / 4, "{long} pages instead of {short}");
}

#[tokio::test(start_paused = true)]
async fn of_a_hundred_thousand_streams_a_poller_holds_a_page_and_its_slots() {
    let world = World::new();
    for n in 0..100_000 {
        world.append(&stream(&n.to_string()), 1).await;
    }
    let (listed, sending) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (pages, sends) = (listed.clone(), sending.clone());
    world.set_fates(move |call| match call {
        Call::Unpublished { .. } => {
            pages.fetch_add(1, SeqCst);
            None
        }
        Call::Publish(_) => {
            sends.fetch_add(1, SeqCst);
            Some(Fault::Hang)
        }
        _ => None,
    });
    let polling = Polling::start(&world, PollConfig::default());
    tokio::time::sleep(Duration::from_secs(600)).await;
    let (listed, sending) = (listed.load(SeqCst), sending.load(SeqCst));
    // One stream tries the topic, and then as many are sent as there are slots.
    assert!((1..=2).contains(&listed), "{listed} pages");
    assert_eq!(sending, 4);
    polling.task.abort();
}
