//! A fleet of instances of one service, whole and in memory: real runners over the in-memory ports,
//! on paused time, with operators at work.
//!
//! Each seed draws the settings ([`schedule`]) and everything that goes wrong: instances die at any
//! await and at the writes of rows, stand still, or go on with partitions that they have lost;
//! ports fail, and lose answers; records come twice, late, or never; handlers fail for a while or
//! until they are fixed; operators redrive, discard, skip, pause and abort meanwhile
//! ([`operator`]). The rules are checked at every call ([`handlers`], [`checks`]), and at the end,
//! when everything is healed.
//!
//! Some of the rules in `tests/mutants` were taken out to see whether the fleet finds them:
//!
//! | mutant | found by | first seed |
//! |---|---|---|
//! | `parked-moves-from-before-the-flush` | `nothing_is_lost_or_overtaken_at_least_once` | 0 |
//! | `parked-stores-positions-of-deferred-records` | `nothing_before_a_stored_position_is_repeated` | 0 |
//! | `runner-commits-for-a-lost-assignment` | `nothing_before_a_stored_position_is_repeated` | 219 |
//! | `parked-reads-the-token-after-the-rows` | not yet | |
mod checks;
mod ears;
mod handlers;
mod instance;
mod operator;
mod schedule;
mod trace;
mod two_processors;
mod world;

use crate::seeds::{self, Watch};
use foldstream::runner::DeliveryLevel;
use schedule::Schedule;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use world::{Hits, World};

/// The most moments of one run at which its thread has nothing to do until the clock moves on. The
/// longest of the short runs has fewer than 2,000.
const MOMENTS: u64 = 20_000;

/// Runs one seed. Returns the world as it is at the end.
async fn history(plan: Schedule, hits: &Hits, is_traced: bool) -> Arc<World> {
    let world = World::new(plan, hits.clone(), is_traced);
    let stop = CancellationToken::new();
    let written = async {
        for _ in 0..world.plan.commits {
            world.write().await;
            if world.one_in(5) {
                world.litter().await;
            }
            sleep(world.millis(0..1_200)).await;
        }
        sleep(world.millis(0..4_000)).await;
        stop.cancel();
    };
    let outage = async {
        if let Some((begin, length)) = world.plan.outage {
            sleep(begin).await;
            world.facts().is_outage = true;
            sleep(length).await;
            world.facts().is_outage = false;
        }
    };
    let lives =
        (0..world.plan.instances).map(|slot| instance::lives(world.clone(), slot, stop.clone()));
    let disturbed = async {
        tokio::join!(
            written,
            outage,
            futures::future::join_all(lives),
            operator::operate(world.clone(), stop.clone()),
            operator::run_jobs(world.clone(), stop.clone()),
        )
    };
    disturbed.await;
    heal(&world).await;
    world
}

/// Everything is fixed, and nothing goes wrong any more.
async fn heal(world: &Arc<World>) {
    world.fix_all();
    world.facts().is_calm = true;
    world.note(|| "everything is healed".into());
    instance::heal(world, 998, operator::clear_up(world)).await;
    // The next owner sweeps the rows of deferred records that were left without an owner.
    instance::heal(world, 999, sleep(Duration::from_secs(6))).await;
    if world.violations().is_none() {
        checks::at_the_end(world).await;
    }
}

/// Runs one seed. Returns the history of a rule that was broken.
fn violation(
    watch: &Arc<Watch>,
    (seed, level): (u64, DeliveryLevel),
    hits: &Hits,
    is_traced: bool,
) -> Option<String> {
    let plan = Schedule::draw(seed, level);
    let hour = Duration::from_secs(3_600);
    let run = async { tokio::time::timeout(hour, history(plan, hits, is_traced)).await };
    let ended = watch.alone(seed, run);
    ended.map_or_else(|_| Some("it hangs".into()), |world| world.violations())
}

/// Runs seeds at a level on all cores, and asserts that each of these things has happened.
fn run(name: &str, level: DeliveryLevel, features: &[&str]) {
    let hits = Hits::default();
    let seeds = foldstream_testkit::length::seeds(SHORT, 3_400);
    let number = seeds.end - seeds.start;
    seeds::run(
        &format!("runner::fleet::{name}"),
        seeds,
        MOMENTS,
        |watch, seed| violation(watch, (seed, level), &hits, number == 1),
    );
    let hits = hits.lock().unwrap();
    println!("{hits:#?}");
    // The seeds are always the same ones, so that luck does not decide.
    if number >= SHORT {
        let features = COMMON.iter().chain(features);
        let missing: Vec<_> = features.filter(|f| !hits.contains_key(**f)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

/// The seeds of each level in a short run: 2,010 in all.
const SHORT: u64 = 670;

/// The faults, crash points and features that every level must have met.
const COMMON: &[&str] = &[
    "ApplyLate on put",
    "CrashAfter on commit",
    "CrashAfter on put",
    "CrashBefore on commit",
    "CrashBefore on put",
    "Delay on commit",
    "Delay on put",
    "Duplicate on put",
    "Freeze on next",
    "HoldBack on next",
    "LoseReply on commit",
    "LoseReply on delete",
    "LoseReply on get",
    "LoseReply on getmany",
    "LoseReply on offsets",
    "LoseReply on put",
    "LoseReply on range",
    "LoseReply on subscribe",
    "LoseSession on next",
    "Unavailable on commit",
    "Unavailable on delete",
    "Unavailable on get",
    "Unavailable on getmany",
    "Unavailable on next",
    "Unavailable on offsets",
    "Unavailable on pause",
    "Unavailable on put",
    "Unavailable on range",
    "Unavailable on subscribe",
    "a job runner died",
    "an operator died",
    "batch",
    "buffered effects forgotten",
    "call during an outage",
    "call of bus",
    "call of history",
    "delete ask",
    "delete park",
    "died at put park",
    "discard asked",
    "discard passed",
    "duplicate records",
    "failed flush",
    "failed: Fatal",
    "failed: Flaky",
    "failed: Panic",
    "failed: Permanent",
    "failed: Slow",
    "failed: Throttled",
    "failed: Transient",
    "fixed",
    "frozen process",
    "full window",
    "full window in bytes",
    "given up: DeadLetter",
    "given up: Discard",
    "given up: Park",
    "halted: this process is broken",
    "heard of a pause: true",
    "hole",
    "job done",
    "killed at any await",
    "late record",
    "lost answer of a handler",
    "lost assignment",
    "missing record",
    "partial flush",
    "paused",
    "private event",
    "put ask",
    "put def",
    "put discarded",
    "put dlq",
    "put park",
    "redrive of All",
    "redrive of Group",
    "redrive of Letter",
    "redrive of Stream",
    "redriven at the end",
    "resumed",
    "revocation",
    "skip asked",
    "stopped",
    "unreadable record",
    "unreadable record discarded",
    "zombie",
];

#[test]
fn nothing_is_lost_or_overtaken_at_least_once() {
    let name = "nothing_is_lost_or_overtaken_at_least_once";
    run(name, DeliveryLevel::AtLeastOnce, &[]);
}

#[test]
fn nothing_before_a_stored_position_is_repeated() {
    let name = "nothing_before_a_stored_position_is_repeated";
    run(name, DeliveryLevel::Deduplicated, &["put pos"]);
}

#[test]
fn every_effect_comes_exactly_once() {
    let name = "every_effect_comes_exactly_once";
    run(name, DeliveryLevel::ExactlyOnceEffect, &[]);
}

/// Runs a seed on a thread of its own, and returns everything that its processes did and heard.
fn traced(seed: u64, level: DeliveryLevel) -> Vec<String> {
    let run = move || {
        let plan = Schedule::draw(seed, level);
        let watch = Watch::new(MOMENTS);
        watch
            .alone(seed, history(plan, &Hits::default(), true))
            .notes()
    };
    std::thread::spawn(run).join().unwrap()
}

#[test]
fn a_seed_has_one_history() {
    let levels = [
        DeliveryLevel::AtLeastOnce,
        DeliveryLevel::Deduplicated,
        DeliveryLevel::ExactlyOnceEffect,
    ];
    for seed in foldstream_testkit::length::seeds(10, 300) {
        for level in levels {
            let (first, second) = (traced(seed, level), traced(seed, level));
            let pairs = first.iter().zip(&second);
            let same = pairs.take_while(|(a, b)| a == b).count();
            let next = |notes: &[String]| {
                let end = notes.len().min(same + 3);
                notes[same.saturating_sub(5).min(end)..end].join("\n")
            };
            assert!(
                first == second,
                "seed {seed} at {level:?} has two histories, of {} and {} notes:\n{}\n---\n{}",
                first.len(),
                second.len(),
                next(&first),
                next(&second),
            );
        }
    }
}
