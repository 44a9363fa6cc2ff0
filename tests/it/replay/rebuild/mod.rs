//! Rebuilds of a read model, whole and in memory: the instances of a service run the live
//! generation with the real runner while replayers build the next one, on paused time.
//!
//! Each seed draws the settings ([`plan`]) and everything that goes wrong ([`lives`]). Writers
//! append and publish all the time, with events of types and aggregates to which the projector
//! does not subscribe, duplicates, and markers of transactions. Replayers die at any row, page,
//! flush and reset, are resumed by others, stand still, and go on after their lease was taken
//! over. Operators cancel. Instances die, are expelled from their groups, and start again. Ports
//! fail and lose answers. Readers wait for versions and ask for the active model. The rules are
//! checked at every call ([`checks`]), and at the end, when everything is healed.
mod checks;
mod lives;
mod plan;
mod process;
mod world;

use crate::seeds::{self, Watch};
use lives::{IN_PROJECTOR, OF_INSTANCES, OF_REPLAYERS};
use plan::Plan;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use world::{Hits, World};

/// The time after which an event is in the model that serves, whatever goes wrong meanwhile.
const PATIENCE: Duration = Duration::from_secs(150);

/// Runs one seed. Returns the world as it is at the end.
async fn history(plan: Plan, hits: &Hits) -> Arc<World> {
    let world = World::new(plan, hits.clone());
    for _ in 0..world.below(12) {
        world.append().await;
        world.publish_next().await;
    }
    let stop = CancellationToken::new();
    let plan = &world.plan;
    let clones = || (world.clone(), stop.clone());
    let instances = (0..plan.instances).map(|slot| {
        let (world, stop) = clones();
        lives::serves(world, slot, stop)
    });
    let replayers = (0..plan.replayers).map(|slot| {
        let (world, stop) = clones();
        lives::replays(world, slot, stop)
    });
    let readers = (0..2).map(|slot| {
        let (world, stop) = clones();
        lives::reads(world, slot, stop)
    });
    let (canceller, until_stop) = clones();
    let over = async {
        let length = if plan.is_slow { 1_500_000 } else { 40_000 };
        sleep(Duration::from_millis(length) + world.millis(0..50_000)).await;
        stop.cancel();
    };
    tokio::join!(
        over,
        writes(&world, &stop),
        watches(&world, &stop),
        futures::future::join_all(instances),
        futures::future::join_all(replayers),
        futures::future::join_all(readers),
        lives::cancels(canceller, until_stop),
    );
    if world.violations().is_none() {
        lives::heal(&world).await;
    }
    world
}

/// Appends and publishes, until `stop`.
async fn writes(world: &World, stop: &CancellationToken) {
    let pause = if world.plan.is_slow { 60_000 } else { 4_000 };
    while !stop.is_cancelled() {
        world.append().await;
        while !world.one_in(3) && world.publish_next().await {}
        if world.one_in(6) {
            let number = world.below(u64::from(world.plan.partitions));
            world.mark(u32::try_from(number).unwrap());
        }
        sleep(world.millis(0..pause)).await;
    }
}

async fn watches(world: &World, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        sleep(Duration::from_secs(5)).await;
        checks::moves_on(world, PATIENCE);
    }
}

/// The most moments of one run at which its thread has nothing to do until the clock moves on. The
/// longest of the short runs has fewer than 20,000.
const MOMENTS: u64 = 200_000;

/// Runs one seed. Returns the history of a rule that was broken.
fn violation(watch: &Arc<Watch>, seed: u64, hits: &Hits) -> Option<String> {
    let plan = Plan::draw(seed);
    let run = async {
        let hours = Duration::from_secs(20_000);
        tokio::time::timeout(hours, history(plan, hits)).await
    };
    let ended = watch.alone(seed, run);
    ended.map_or_else(|_| Some("it hangs".into()), |world| world.violations())
}

/// The seeds of a short run.
const SHORT: u64 = 300;

/// The events that must have happened besides the deaths.
const FEATURES: &[&str] = &[
    "a wait timed out",
    "a wait was answered",
    "active model",
    "cancelled",
    "cancelled too late",
    "died while it cancelled",
    "ended: AlreadyRunning",
    "ended: Cancelled",
    "ended: Held",
    "ended: LeaseExpired",
    "ended: TakenOver",
    "fault ApplyLate",
    "fault Delay",
    "fault Duplicate",
    "fault Freeze",
    "fault HoldBack",
    "fault LoseReply",
    "fault LoseRequest",
    "fault LoseSession",
    "fault Throttled",
    "fault Unavailable",
    "handed over",
    "instance died",
    "instance killed at any await",
    "instance stopped",
    "lease taken over",
    "model deleted",
    "rebalance of the active generation",
    "rebalance of the next generation",
    "resumed",
    "robbed",
    "robbed holder after a reset",
    "robbed holder before a flush",
    "robbed holder before an effect",
    "started",
    "switch",
    "transaction marker",
];

#[test]
fn a_rebuild_is_whole_whatever_dies_while_the_service_goes_on() {
    const NAME: &str = "a_rebuild_is_whole_whatever_dies_while_the_service_goes_on";
    let hits = Hits::default();
    let seeds = foldstream_testkit::length::seeds(SHORT, 8_000);
    let number = seeds.end - seeds.start;
    let of_test = format!("replay::rebuild::{NAME}");
    seeds::run(&of_test, seeds, MOMENTS, |watch, seed| {
        violation(watch, seed, &hits)
    });
    let hits = hits.lock().unwrap();
    println!("{number} seeds: {hits:#?}");
    // The seeds are always the same ones, so that luck does not decide.
    if number < SHORT {
        return;
    }
    let calls =
        |kind: &str, at: &str| ["before", "after"].map(|when| format!("{kind} dies {when} {at}"));
    let places = IN_PROJECTOR.iter().map(|at| format!("replayer dies {at}"));
    let deaths = OF_REPLAYERS.iter().flat_map(|at| calls("replayer", at));
    let of_instances = OF_INSTANCES.iter().flat_map(|at| calls("instance", at));
    let features = FEATURES.iter().map(ToString::to_string);
    let needed = features.chain(deaths).chain(places).chain(of_instances);
    let missing: Vec<_> = needed.filter(|of| !hits.contains_key(of)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}
