//! Several pollers: they share the work by leases, and send almost nothing twice.
use super::{
    poller::{Polling, until},
    world::{World, stream},
};
use foldstream::{
    IdSource, StreamId,
    ports::{ControlStore, Expect, RangeQuery, RefusedKind, Row, RowKey},
    publisher::{PollConfig, PollError, PollReport},
};
use foldstream_testkit::{
    faults::{Call, Fault, Faults, Op},
    length,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

const S: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

/// Returns the number of segments that each owner holds now. Released leases have no owner.
async fn owners(world: &World) -> BTreeMap<String, usize> {
    let page = world.control.range(&RangeQuery::new("pub")).await.unwrap();
    let mut owners = BTreeMap::new();
    for row in page.rows {
        if row.key.sort.starts_with("poller/8/") && !row.key.sort.contains("/by/") {
            let value: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
            if let Some(owner) = value["o"].as_str() {
                *owners.entry(owner.to_owned()).or_default() += 1;
            }
        }
    }
    owners
}

/// Waits until the segments are held in these numbers, the smallest first.
async fn shared_as(world: &World, expected: &[usize]) {
    until("the segments are shared", || async {
        let mut shares: Vec<_> = owners(world).await.into_values().collect();
        shares.sort_unstable();
        shares == expected
    })
    .await;
}

async fn append_to(world: &World, streams: usize) {
    for n in 0..streams {
        world.append(&stream(&n.to_string()), 2).await;
    }
}

async fn published(world: &World) {
    until("everything is published", || async {
        world.unpublished().await.is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pollers_share_the_work_and_send_nothing_twice() {
    for pollers in [2_usize, 3] {
        let world = World::new();
        // A send takes a while, so that pollers without leases would meet.
        let slow = Fault::Delay(Duration::from_millis(5)).on(Op::Publish);
        world.faults.set([slow]);
        let config = PollConfig::default();
        let polling: Vec<_> = (0..pollers)
            .map(|_| Polling::start(&world, config))
            .collect();
        let expected: &[usize] = if pollers == 2 { &[4, 4] } else { &[2, 3, 3] };
        shared_as(&world, expected).await;
        for _ in 0..20 {
            append_to(&world, 40).await;
            tokio::time::sleep(S).await;
        }
        published(&world).await;
        let mut reports = Vec::new();
        for polling in polling {
            reports.push(polling.stop().await);
        }
        assert!(reports.iter().all(|r| r.messages > 200), "{reports:?}");
        let sent: u64 = reports.iter().map(|r| r.messages).sum();
        assert_eq!((sent, world.records().await), (1_600, 1_600));
        assert!(owners(&world).await.is_empty(), "all leases are released");
        world.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pollers_that_come_and_go_in_peace_get_their_share_and_send_nothing_twice() {
    let world = World::new();
    let slow = Fault::Delay(Duration::from_millis(5)).on(Op::Publish);
    world.faults.set([slow]);
    let config = PollConfig::default();
    let appending = {
        let world = world.clone();
        tokio::spawn(async move {
            for _ in 0..120 {
                append_to(&world, 20).await;
                tokio::time::sleep(S / 2).await;
            }
        })
    };
    let one = Polling::start(&world, config);
    shared_as(&world, &[8]).await;
    let joined = Instant::now();
    let two = Polling::start(&world, config);
    shared_as(&world, &[4, 4]).await;
    assert!(joined.elapsed() < LEASE, "{:?}", joined.elapsed());
    let three = Polling::start(&world, config);
    shared_as(&world, &[2, 3, 3]).await;
    // A memory of watermarks from an earlier possession would send events again.
    let left = Instant::now();
    one.stop().await;
    shared_as(&world, &[4, 4]).await;
    assert!(left.elapsed() < LEASE, "{:?}", left.elapsed());
    let four = Polling::start(&world, config);
    shared_as(&world, &[2, 3, 3]).await;
    two.stop().await;
    four.stop().await;
    shared_as(&world, &[8]).await;
    appending.await.unwrap();
    published(&world).await;
    three.stop().await;
    assert_eq!(world.records().await, 120 * 40);
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn more_pollers_than_segments_leave_some_in_reserve() {
    let world = World::new();
    let config = PollConfig::default();
    let polling: Vec<_> = (0..10).map(|_| Polling::start(&world, config)).collect();
    shared_as(&world, &[1; 8]).await;
    append_to(&world, 40).await;
    published(&world).await;
    for polling in polling {
        polling.stop().await;
    }
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn the_segments_of_a_dead_poller_are_taken_over_after_its_lease_time() {
    let world = World::new();
    let config = PollConfig::default();
    let dies = Polling::start(&world, config);
    let lives = Polling::start(&world, config);
    shared_as(&world, &[4, 4]).await;
    dies.task.abort();
    let died = Instant::now();
    append_to(&world, 40).await;
    published(&world).await;
    // It may have renewed a third of the lease time before, and is seen a round later.
    let took = died.elapsed();
    assert!(took > LEASE * 2 / 3 && took < LEASE * 2, "{took:?}");
    assert_eq!(world.records().await, 80);
    shared_as(&world, &[8]).await;
    lives.stop().await;
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_poller_whose_lease_was_robbed_stops_that_segment() {
    let world = World::new();
    let config = PollConfig::default().with_segments(1);
    world.faults.set([Fault::Delay(S).on(Op::Publish)]);
    let polling = Polling::start(&world, config);
    for _ in 0..100 {
        world.append(&stream("long"), 1).await;
    }
    until("the backlog is being sent", || async {
        !world.network.sent(&stream("long")).is_empty()
    })
    .await;
    // Another process has taken over although the lease was renewed.
    let key = RowKey::new("pub", "poller/1/0");
    let rob = async |epoch: u64| {
        let value = format!(r#"{{"e":{epoch},"o":"robber","t":15000}}"#);
        let row = Row::new(key.clone(), value.into_bytes(), world.ids.revision());
        let _ = world.control.put(&row, Expect::Any).await.unwrap();
    };
    rob(100).await;
    // It is noticed at the next renewal, and the run in hand ends.
    tokio::time::sleep(LEASE / 3 + 3 * S).await;
    let sent = world.network.sent(&stream("long")).len();
    world.append(&stream("new"), 1).await;
    for _ in 0..20 {
        rob(100).await;
        tokio::time::sleep(5 * S).await;
    }
    assert!(sent < 50, "{sent}");
    assert_eq!(world.network.sent(&stream("long")).len(), sent);
    assert!(world.network.sent(&stream("new")).is_empty());
    // The robber is silent from now on.
    tokio::time::timeout(500 * S, async {
        while !world.unpublished().await.is_empty() {
            tokio::time::sleep(S).await;
        }
    })
    .await
    .expect("taken over again");
    let report = polling.stop().await;
    assert_eq!(report.leases_lost, 1, "{report:?}");
    world.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_poller_that_cannot_renew_begins_nothing_after_its_lease() {
    for fault in [Fault::Unavailable, Fault::Hang] {
        let world = World::new();
        let polling = Polling::start(&world, PollConfig::default());
        shared_as(&world, &[8]).await;
        let renewals =
            |call: &Call<'_>| matches!(call, Call::Put { row, .. } if row.key.partition == "pub");
        world.faults.set([fault.anywhere().matching(renewals)]);
        tokio::time::sleep(LEASE).await;
        append_to(&world, 10).await;
        tokio::time::sleep(4 * LEASE).await;
        assert_eq!(world.records().await, 0);
        world.heal();
        published(&world).await;
        polling.stop().await;
        world.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn leases_that_are_refused_end_the_poller() {
    let world = World::new();
    let denied = Fault::Refused(RefusedKind::Credentials).on(Op::Range);
    world.faults.set([denied]);
    let polling = Polling::start(&world, PollConfig::default());
    let ended = polling.task.await.unwrap();
    assert!(matches!(ended, Err(PollError::Leases { .. })), "{ended:?}");
}

/// A poller as a process of its own that may be killed.
struct Process {
    faults: Faults,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<PollReport, PollError>>,
}

impl Process {
    fn start(world: &World, config: PollConfig) -> Self {
        let faults = world.faults.restart();
        let publisher = world.publisher_of_runs(&faults).with_concurrency(4);
        let (shutdown, asked) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let asked = async {
                let _ = asked.await;
            };
            publisher.poll(config, asked).await
        });
        Self {
            faults,
            shutdown,
            task,
        }
    }

    async fn kill(self) {
        self.faults.crash();
        self.task.abort();
        let _ = self.task.await;
    }

    async fn stop(self) {
        let _ = self.shutdown.send(());
        self.task.await.unwrap().unwrap();
    }
}

/// The numbers of one seed.
#[derive(Debug, Default)]
struct Counts {
    events: u64,
    records: u64,
    kills: u64,
    joins: u64,
}

/// Lets three pollers work while processes are killed, stopped and started.
async fn simulate(seed: u64) -> Counts {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::seeded(seed);
    let ms = Duration::from_millis;
    world.faults.set([
        Fault::Unavailable.anywhere().one_in(100),
        Fault::LoseReply
            .on([Op::Put, Op::ClearUnpublished])
            .one_in(50),
        Fault::Delay(ms(4)).anywhere().jittered(),
    ]);
    let config = PollConfig::default()
        .with_lease(S)
        .with_segments(rng.u32(2..9));
    let mut counts = Counts::default();
    let mut processes: Vec<_> = (0..3).map(|_| Process::start(&world, config)).collect();
    let streams: Vec<StreamId> = (0..12).map(|n| stream(&n.to_string())).collect();
    for _ in 0..40 {
        for _ in 0..rng.usize(0..20) {
            let stream = &streams[rng.usize(..streams.len())];
            let events = rng.usize(1..4);
            counts.events += events as u64;
            world.append(stream, events).await;
        }
        tokio::time::sleep(ms(rng.u64(20..300))).await;
        world.assert_order();
        match rng.u8(..12) {
            0 if !processes.is_empty() => {
                let one = rng.usize(..processes.len());
                processes.swap_remove(one).kill().await;
                counts.kills += 1;
            }
            1 if processes.len() > 1 => {
                let one = rng.usize(..processes.len());
                processes.swap_remove(one).stop().await;
            }
            _ => {}
        }
        if processes.len() < 3 && rng.u8(..4) == 0 {
            processes.push(Process::start(&world, config));
            counts.joins += 1;
        }
    }
    world.heal();
    if processes.is_empty() {
        processes.push(Process::start(&world, config));
    }
    published(&world).await;
    for process in processes {
        process.stop().await;
    }
    world.assert_at_rest().await;
    counts.records = world.records().await;
    counts
}

#[test]
fn under_kills_fewer_than_one_event_in_twenty_is_sent_twice() {
    let mut all = Counts::default();
    for seed in length::seeds(60, 2_000) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let counts = runtime.block_on(simulate(seed));
        all.events += counts.events;
        all.records += counts.records;
        all.kills += counts.kills;
        all.joins += counts.joins;
    }
    println!("{all:?}");
    assert!(all.kills > 0 && all.joins > 0, "{all:?}");
    let twice = all.records - all.events;
    assert!(
        twice * 20 < all.events,
        "{twice} of {} were sent twice",
        all.events
    );
}
