//! The lives of instances, replayers and readers.
use super::{
    checks,
    process::{Kind, Process, point},
    world::{NAME, TOPIC, World},
};
use crate::{seeds::Life, support::stream};
use foldstream::{
    Version,
    ports::{MessageBus, PartitionId},
    replay::{CancelOutcome, Replay, ReplayError, RunId},
    runner::{DeliveryLevel, ReadModelError, ReadModels, RunnerReport},
};
use foldstream_testkit::faults::{Fault, Faults, Op, Rule};
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The calls at which a replayer dies.
pub(super) const OF_REPLAYERS: [&str; 14] = [
    "put lease",
    "put run preparing",
    "put run reset_done",
    "put run scanning",
    "put run catch_up",
    "put run cancelled",
    "put proc preparing",
    "put proc catch_up",
    "put proc live",
    "put seg",
    "put boot",
    "put pos",
    "scan",
    "offsets",
];

/// The places in the projector at which a replayer dies.
pub(super) const IN_PROJECTOR: [&str; 7] = [
    "before an effect",
    "after an effect",
    "before a flush",
    "in a flush",
    "after a flush",
    "before a reset",
    "after a reset",
];

/// The calls at which an instance dies.
pub(super) const OF_INSTANCES: [&str; 9] = [
    "put proc live",
    "put run done",
    "put old",
    "put boot",
    "put inst",
    "put pos",
    "commit",
    "committed",
    "offsets",
];

/// Returns a rule by which a process dies at the nth call of a kind, before or after it.
fn crash(process: &Process, at: &'static str, nth: u64) -> Rule {
    let (world, kind) = (process.world.clone(), process.kind.name());
    let (seen, before) = (Mutex::new(0), process.below(2) == 0);
    Rule::chosen_by(move |call| {
        if point(call).as_deref() != Some(at) {
            return None;
        }
        let mut seen = seen.lock().unwrap();
        *seen += 1;
        if *seen != nth + 1 {
            return None;
        }
        let (fault, when) = match before {
            true => (Fault::CrashBefore, "before"),
            false => (Fault::CrashAfter, "after"),
        };
        world.hit(format!("{kind} dies {when} {at}"));
        Some(fault)
    })
}

/// Counts the faults that were injected into the calls of a process.
fn count(world: &World, faults: &Faults) {
    for injected in faults.log() {
        let fault = format!("{:?}", injected.fault);
        let fault = fault.split('(').next().unwrap_or_default().to_owned();
        if !fault.starts_with("Crash") {
            world.hit(format!("fault {fault}"));
        }
    }
}

fn below(process: &Process, n: usize) -> usize {
    usize::try_from(process.below(n as u64)).unwrap()
}

/// Creates a replayer. It dies at a point that is drawn, unless it is calm.
fn replayer(world: &Arc<World>, number: u64, is_calm: bool) -> Arc<Process> {
    let process = Process::new(world, Kind::Replayer, number);
    if is_calm {
        return process;
    }
    let mut rules = Vec::new();
    match process.below(4) {
        0 => {
            let place = IN_PROJECTOR[below(&process, IN_PROJECTOR.len())];
            let more = u32::try_from(process.below(4)).unwrap();
            *process.dies_at.lock().unwrap() = Some((place, more));
        }
        1 | 2 => {
            let at = OF_REPLAYERS[below(&process, OF_REPLAYERS.len())];
            // Most rows of a run and of a processor are written once by a process.
            let is_rare = at.starts_with("put run") || at.starts_with("put proc");
            let nth = if is_rare { 0 } else { process.below(3) };
            rules.push(crash(&process, at, nth));
        }
        _ => {}
    }
    let millis = Duration::from_millis;
    let calls = [Op::Get, Op::Put, Op::Range, Op::Offsets, Op::Scan];
    rules.extend([
        Fault::LoseReply.on(Op::Put).one_in(30),
        Fault::LoseRequest.on(Op::Put).one_in(40),
        Fault::ApplyLate(millis(8_000))
            .on(Op::Put)
            .one_in(60)
            .jittered(),
        Fault::Duplicate.on(Op::Put).one_in(60),
        Fault::Throttled(None).on([Op::Scan, Op::Get]).one_in(30),
        Fault::Unavailable.on(calls).one_in(40),
        Fault::Delay(millis(900)).on(calls).one_in(8).jittered(),
        Fault::Freeze(millis(8_000))
            .on(calls)
            .one_in(120)
            .jittered(),
    ]);
    if world.plan.is_slow {
        let slow = Fault::Delay(Duration::from_secs(400)).on(Op::Scan);
        rules.push(slow.one_in(2).jittered());
    }
    process.faults.set(rules);
    process
}

fn replay(process: &Process, runner: &foldstream::runner::Runner) -> Replay {
    let plan = &process.world.plan;
    Replay::all(runner)
        .with_segments(plan.segments)
        .with_page(NonZeroU32::new(plan.page).unwrap())
        .with_lease(Duration::from_secs(3))
        .with_reset_timeout(Duration::from_secs(5))
        .with_checkpoint_interval(Duration::from_millis(1 + process.below(900)))
}

/// Notes the run with which the next replayer goes on.
fn goes_on(world: &World, of: Option<RunId>, error: &ReplayError) {
    let mut facts = world.facts();
    match error {
        ReplayError::NotFound { .. }
        | ReplayError::Over { .. }
        | ReplayError::Cancelled { .. }
        | ReplayError::Reset { .. }
            if facts.run == of =>
        {
            facts.run = None;
        }
        ReplayError::AlreadyRunning { run, .. } => facts.run = run.parse().ok(),
        _ => {}
    }
}

/// Runs one replayer to its end or death. Returns true if the run was handed over.
async fn replays_once(world: &Arc<World>, number: u64, is_calm: bool) -> bool {
    let process = replayer(world, number, is_calm);
    let runner = process.runner();
    let replay = replay(&process, &runner);
    let known = world.facts().run;
    world.note(|| format!("{} begins with {known:?}", process.who));
    let begun = async {
        match known {
            Some(run) => replay.resume(run).await,
            None => replay.start().await,
        }
    };
    let handle = match process.faults.run(begun).await {
        None => return false,
        Some(Ok(handle)) => handle,
        Some(Err(error)) => {
            goes_on(world, known, &error);
            return false;
        }
    };
    let run = handle.run();
    world.hit(if known.is_some() {
        "resumed"
    } else {
        "started"
    });
    world.facts().run.get_or_insert(run);
    let robbed = async {
        if !is_calm && process.below(3) == 0 {
            sleep(Duration::from_millis(process.below(6_000))).await;
            process.is_robbed.store(true, Ordering::Relaxed);
            world.hit("robbed");
            world.note(|| format!("{} does not renew its lease", process.who));
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        biased;
        () = robbed => None,
        ended = process.faults.run(handle.wait()) => ended,
    };
    count(world, &process.faults);
    process.faults.crash();
    match ended {
        None => {
            world.note(|| format!("{} has died", process.who));
            false
        }
        Some(Ok(_)) => {
            world.hit("handed over");
            world.note(|| format!("{} has handed over", process.who));
            true
        }
        Some(Err(error)) => {
            world.note(|| format!("{} has ended: {error}", process.who));
            let text = format!("{error:?}");
            let name = text.split([' ', '{', '(']).next().unwrap_or_default();
            world.hit(format!("ended: {name}"));
            goes_on(world, Some(run), &error);
            false
        }
    }
}

/// Runs one replayer after the other, until `stop`.
pub(super) async fn replays(world: Arc<World>, slot: u64, stop: CancellationToken) {
    let mut number = slot * 1_000;
    sleep(world.millis(0..8_000)).await;
    while !stop.is_cancelled() {
        number += 1;
        let once = replays_once(&world, number, false);
        let is_handed_over = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            is_handed_over = once => is_handed_over,
        };
        // Instances have it now. Later another replay may begin.
        let pause = if is_handed_over { 20_000 } else { 1_500 };
        sleep(world.millis(0..pause)).await;
    }
}

/// Cancels replays at any time, now and then.
pub(super) async fn cancels(world: Arc<World>, stop: CancellationToken) {
    let mut number = 0;
    while world.plan.cancels && !stop.is_cancelled() {
        sleep(world.millis(1_000..25_000)).await;
        let Some(run) = world.facts().run else {
            continue;
        };
        number += 1;
        let process = Process::new(&world, Kind::Replayer, 900_000 + number);
        let calls = [Op::Get, Op::Put];
        process.faults.set([
            Fault::CrashBefore.on(Op::Put).one_in(12),
            Fault::CrashAfter.on(Op::Put).one_in(12),
            Fault::LoseReply.on(Op::Put).one_in(20),
            Fault::Delay(Duration::from_millis(900))
                .on(calls)
                .one_in(3)
                .jittered(),
        ]);
        let runner = process.runner();
        let cancelled = replay(&process, &runner).cancel(run);
        match process.faults.run(cancelled).await {
            Some(Ok(CancelOutcome::Cancelled)) => world.hit("cancelled"),
            Some(Ok(_)) => world.hit("cancelled too late"),
            Some(Err(_)) => world.hit("failed to cancel"),
            None => world.hit("died while it cancelled"),
        }
    }
}

fn faults_of_instances() -> Vec<Rule> {
    const CALLS: [Op; 12] = [
        Op::Get,
        Op::GetMany,
        Op::Put,
        Op::Delete,
        Op::Range,
        Op::Offsets,
        Op::Committed,
        Op::Subscribe,
        Op::Next,
        Op::Commit,
        Op::Read,
        Op::DeleteGroup,
    ];
    let millis = Duration::from_millis;
    let writes = [Op::Put, Op::Delete];
    vec![
        Fault::LoseSession.on(Op::Next).one_in(150),
        Fault::HoldBack(millis(1_000))
            .on(Op::Next)
            .one_in(60)
            .jittered(),
        Fault::Unavailable.on(CALLS).one_in(40),
        Fault::LoseReply.on(CALLS).one_in(40),
        Fault::ApplyLate(millis(2_000))
            .on(writes)
            .one_in(60)
            .jittered(),
        Fault::Duplicate.on(Op::Put).one_in(60),
        Fault::Delay(millis(900)).on(CALLS).one_in(40).jittered(),
        Fault::Freeze(millis(3_000))
            .on(CALLS)
            .one_in(600)
            .jittered(),
    ]
}

fn check_report(world: &World, who: &str, report: RunnerReport) {
    if let Err(error) = report.into_result() {
        world.violated(format!("{who} has halted: {error}"));
    }
}

/// Runs one instance after the other in one slot, until `stop`.
pub(super) async fn serves(world: Arc<World>, slot: u64, stop: CancellationToken) {
    let mut number = slot * 1_000;
    while !stop.is_cancelled() {
        number += 1;
        let process = Process::new(&world, Kind::Instance, number);
        let mut rules = faults_of_instances();
        if process.below(3) > 0 {
            let at = OF_INSTANCES[below(&process, OF_INSTANCES.len())];
            // The end of a replay comes once.
            let is_rare = ["put proc live", "put run done", "put old"].contains(&at);
            let nth = if is_rare { 0 } else { process.below(4) };
            rules.push(crash(&process, at, nth));
        }
        process.faults.set(rules);
        let runner = process.runner();
        let life = Life {
            length: Duration::from_millis(5_000 + process.below(40_000)),
            is_killed: process.below(2) == 0,
            steps: u32::try_from(process.below(60)).unwrap(),
        };
        let shutdown = life.until_stopped(&stop);
        world.note(|| format!("{} starts", process.who));
        tokio::select! {
            biased;
            () = life.until_killed(), if life.is_killed => world.hit("instance killed at any await"),
            () = rebalances(&world, process.below(u64::MAX)) => {}
            report = process.faults.run(runner.run(shutdown)) => match report {
                Some(report) => {
                    world.hit("instance stopped");
                    check_report(&world, &process.who, report);
                }
                None => world.hit("instance died"),
            },
        }
        world.note(|| format!("{} is over", process.who));
        process.faults.crash();
        count(&world, &process.faults);
        sleep(world.millis(0..2_000)).await;
    }
}

/// Expels the owner of a partition from the group of a generation now and then.
async fn rebalances(world: &World, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        sleep(Duration::from_millis(rng.u64(2_000..15_000))).await;
        let next = {
            let facts = world.facts();
            let next = facts.proc.as_ref().and_then(|proc| proc["n"].as_u64());
            next.and_then(|next| u32::try_from(next).ok())
        };
        let generation = match next {
            Some(next) if rng.bool() => {
                world.hit("rebalance of the next generation");
                next
            }
            _ => {
                world.hit("rebalance of the active generation");
                world.facts().active()
            }
        };
        let number = rng.u32(0..world.plan.partitions);
        let group = World::group(generation);
        world
            .bus
            .expel_owner(&group, &PartitionId::new(TOPIC, number));
    }
}

/// Waits for versions and asks for the active model, until `stop`.
pub(super) async fn reads(world: Arc<World>, slot: u64, stop: CancellationToken) {
    let process = Process::new(&world, Kind::Reader, slot);
    let calls = [Op::Get, Op::Offsets];
    process.faults.set([
        Fault::Delay(Duration::from_millis(900))
            .on(calls)
            .one_in(2)
            .jittered(),
        Fault::Unavailable.on(calls).one_in(40),
    ]);
    let models = process.runner().read_models();
    while !stop.is_cancelled() {
        sleep(Duration::from_millis(process.below(1_500))).await;
        let id = process.below(world.plan.streams).to_string();
        let last = world.facts().last_relevant(&id);
        let version = if process.below(2) == 0 || last == 0 {
            last.max(1)
        } else {
            1 + process.below(last)
        };
        let timeout = Duration::from_millis(process.below(4_000));
        let of = stream(&id);
        let waited = models.wait_for(NAME, &of, Version::new(version), timeout);
        match waited.await {
            Ok(model) => {
                world.hit("a wait was answered");
                checks::answered(&process, model.generation(), &id, version);
            }
            Err(ReadModelError::TimedOut { .. }) => world.hit("a wait timed out"),
            Err(ReadModelError::NoPositions { .. }) => {
                assert_eq!(world.plan.level, DeliveryLevel::AtLeastOnce);
            }
            Err(ReadModelError::NotStarted { .. }) => world.hit("a wait before the start"),
            Err(error) if format!("{error:?}").contains("by the test") => {}
            Err(error) => world.violated(format!("a wait fails: {error:?}")),
        }
        queries(&world, &models).await;
    }
}

/// Asks for the active model, which is at most as old as the cache.
async fn queries(world: &World, models: &ReadModels) {
    let asked = Instant::now();
    let Ok(model) = models.active_model(NAME).await else {
        return;
    };
    world.hit("active model");
    let facts = world.facts();
    let (served, next) = facts.served(model.generation());
    let is_old = next.is_some_and(|next| next.since + ReadModels::CACHED_FOR < asked);
    let found = facts.models.get(&model.generation());
    let is_deleted = found.is_some_and(|model| model.is_deleted);
    drop(facts);
    if !served || is_deleted || is_old {
        world.violated(format!("{model} is not the active model"));
    }
}

/// Everything is healed. Replays the processor if nobody has, and waits for the end.
pub(super) async fn heal(world: &Arc<World>) {
    world.facts().is_calm = true;
    world.note(|| "everything is healed".into());
    let stop = CancellationToken::new();
    let healed = Process::new(world, Kind::Instance, 999_999);
    let runner = healed.runner();
    let work = async {
        while world.publish_next().await {}
        for number in 0..world.plan.partitions {
            world.mark(number);
        }
        finish(world).await;
        let deadline = Instant::now() + Duration::from_secs(300);
        while Instant::now() < deadline && !is_quiet(world).await {
            sleep(Duration::from_secs(2)).await;
        }
        checks::at_the_end(world).await;
        if world.plan.waits_for_deletion {
            sleep(Duration::from_secs(1_500)).await;
            checks::after_the_deletion(world).await;
            checks::at_the_end(world).await;
        }
        stop.cancel();
    };
    let (report, ()) = tokio::join!(runner.run(stop.cancelled()), work);
    check_report(world, &healed.who, report);
}

/// Brings the replay to its end: it is resumed, or its cancellation is repeated. If no replay has
/// been whole, another one is.
async fn finish(world: &Arc<World>) {
    // What is late comes first.
    sleep(Duration::from_secs(20)).await;
    for number in 0..20 {
        let (run, proc_state, run_state, active) = {
            let facts = world.facts();
            let proc = facts.proc.clone().unwrap_or_default();
            let run = proc["r"].as_str().and_then(|run| run.parse().ok());
            let run: Option<RunId> = run.or(facts.run);
            let row = run.and_then(|run| facts.runs.get(&run.to_string()).cloned());
            let state = row.map(|row| row["s"].clone()).unwrap_or_default();
            (run, proc["st"].clone(), state, facts.active())
        };
        if proc_state == "live" && active > 1 {
            return;
        }
        world.facts().run = run;
        let is_over = run_state.is_null() || run_state == "cancelled" || run_state == "done";
        match run {
            Some(_) if proc_state == "catch_up" && !is_over => {
                sleep(Duration::from_secs(40)).await;
            }
            Some(run) if is_over => {
                let process = Process::new(world, Kind::Replayer, 800_000 + number);
                let runner = process.runner();
                // A replay without a row has never begun.
                let cancelled = replay(&process, &runner).cancel(run).await;
                assert!(cancelled.is_ok() || run_state.is_null(), "{cancelled:?}");
                world.facts().run = None;
            }
            _ => drop(replays_once(world, 700_000 + number, true).await),
        }
    }
    let proc = world.facts().proc.clone();
    world.violated(format!("no replay came to its end: {proc:?}"));
}

/// Returns true if the active generation has committed everything.
async fn is_quiet(world: &World) -> bool {
    let group = World::group(world.facts().active());
    let committed = world.bus.committed(&group, TOPIC).await.unwrap();
    let ends = world.ends().await;
    committed
        .iter()
        .all(|(of, at)| at.map_or(0, |at| at.get()) == ends[&of.partition])
}
