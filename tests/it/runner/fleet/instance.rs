//! Instances of the service. Each runs until it is stopped or dies, and the next one takes its
//! place.
use super::{
    checks,
    ears::Ears,
    handlers::{Body, Projects, Reacts},
    schedule::{Breaker, GiveUp, Role},
    trace,
    world::{Event, PREFIX, World},
};
use crate::seeds::Life;
use foldstream::{
    breaker::{BreakerPolicy, CallWindow, CircuitBreaker, DistributedBreaker},
    ports::PartitionId,
    runner::{FailedEvent, FailureAction, ProcessorPolicy, Runner, RunnerReport},
};
use foldstream_testkit::{
    SeededIds,
    faults::{Call, Fault, Faults, Moment, Op, Rule},
    intercept,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::harness::TOPIC;

/// The calls of ports that runners make.
pub(super) const CALLS: [Op; 13] = [
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
    Op::Pause,
    Op::Resume,
    Op::Read,
];

/// The kinds of rows at whose writes instances die.
pub(super) const ROWS: [&str; 6] = ["park", "dlq", "discarded", "def", "pos", "ask"];

/// Returns the kind of the row that a call writes.
pub(super) fn written<'a>(call: &'a Call<'_>) -> Option<&'a str> {
    let key = match call {
        Call::Put { row, .. } => &row.key,
        Call::Delete { key, .. } => key,
        _ => return None,
    };
    key.partition.split('/').next()
}

fn rules() -> Vec<Rule> {
    let is_of_failures = |call: &Call<'_>| written(call).is_some_and(|kind| ROWS.contains(&kind));
    let writes = [Op::Put, Op::Delete];
    vec![
        Fault::CrashBefore
            .on(writes)
            .matching(is_of_failures)
            .one_in(60),
        Fault::CrashAfter
            .on(writes)
            .matching(is_of_failures)
            .one_in(60),
        Fault::CrashBefore.on(Op::Commit).one_in(60),
        Fault::CrashAfter.on(Op::Commit).one_in(60),
        Fault::LoseSession.on(Op::Next).one_in(150),
        Fault::HoldBack(Duration::from_secs(1))
            .on(Op::Next)
            .one_in(60)
            .jittered(),
        Fault::Unavailable.on(CALLS).one_in(30),
        Fault::LoseReply.on(CALLS).one_in(30),
        Fault::ApplyLate(Duration::from_secs(2))
            .on(writes)
            .one_in(60)
            .jittered(),
        Fault::Duplicate.on(Op::Put).one_in(60),
        Fault::Delay(Duration::from_millis(900))
            .on(CALLS)
            .one_in(40)
            .jittered(),
        Fault::Freeze(Duration::from_secs(3))
            .on(CALLS)
            .one_in(600)
            .jittered(),
    ]
}

/// Creates the faults of one instance's ports, and checks what they do.
fn faults(world: &Arc<World>, id: u64, seed: u64, has_faults: bool) -> Faults {
    let faults = Faults::seeded(seed);
    if has_faults {
        faults.set(rules());
    }
    let world = world.clone();
    faults.with_probe(move |moment, call| {
        if moment == Moment::Done {
            checks::after(&world, id, call);
        }
    })
}

/// Counts the faults that were injected, by fault and call.
fn count(world: &World, faults: &Faults) {
    for injected in faults.log() {
        let fault = format!("{:?}", injected.fault);
        let fault = fault.split('(').next().unwrap_or_default();
        let about = injected.about.to_lowercase();
        let call = about.split([' ', '{', '(']).next().unwrap_or_default();
        world.hit(format!("{fault} on {call}"));
        if fault.starts_with("Crash") {
            let row = ROWS.iter().find(|kind| about.contains(&format!("{kind}/")));
            world.hit(format!("died at {call} {}", row.unwrap_or(&"")));
        }
    }
}

/// Decides about an event whose retries are spent, and notes the decision.
fn decide(world: &World, event: &FailedEvent<'_>) -> FailureAction {
    let Some(header) = event.header() else {
        return FailureAction::DeadLetter;
    };
    let of: Event = (header.stream.id().parse().unwrap(), header.version.get());
    let text = event.error().source().to_string();
    world.note(|| format!("given up {of:?}: {text}"));
    let mut facts = world.facts();
    let is_outage = text.contains("the service is down");
    let is_ill = facts.ailments.contains_key(&of);
    let action = match world.plan.give_up {
        GiveUp::Park => FailureAction::Park,
        GiveUp::DeadLetter => {
            facts.given_up.insert(of);
            FailureAction::DeadLetter
        }
        GiveUp::Discard => {
            facts.discarded.insert(of);
            FailureAction::Discard("by the policy".into())
        }
    };
    drop(facts);
    if is_outage && !is_ill && world.plan.breaker != Breaker::Absent {
        world.violated(format!("{of:?} is given up for an outage"));
    }
    world.hit(format!("given up: {:?}", world.plan.give_up));
    action
}

fn breaker_policy() -> BreakerPolicy {
    BreakerPolicy::default()
        .with_window(CallWindow::Count(4))
        .with_min_calls(2)
        .with_open_time(Duration::from_millis(500), Duration::from_secs(2))
}

/// A runner, and the exchange of votes of its breaker.
struct Service {
    runner: Runner,
    votes: Option<DistributedBreaker>,
    body: Arc<Body>,
}

fn service(world: &Arc<World>, slot: u64, id: u64, seed: u64, has_faults: bool) -> Service {
    let faults = faults(world, id, seed, has_faults);
    let body = Body::new(world, id, seed, faults.clone());
    let plan = &world.plan;
    let deciding = world.clone();
    let mut policy = plan
        .policy()
        .with_on_failure(move |event| decide(&deciding, event));
    let mut votes = None;
    let who = format!("i{id}");
    let control = faults.control_store(world.control.clone());
    let control = intercept::control_store(control, Ears(body.clone()));
    let control = trace::control_store(world, &who, control);
    let ids = SeededIds::new(seed);
    match plan.breaker {
        Breaker::Absent => {}
        Breaker::Local => {
            policy = policy.with_breaker(CircuitBreaker::new(breaker_policy()).unwrap());
        }
        Breaker::Distributed => {
            let label = format!("slot-{slot}");
            let shared =
                DistributedBreaker::new("service", label, breaker_policy(), control.clone());
            let shared = shared
                .unwrap()
                .with_renew(Duration::from_millis(700))
                .unwrap();
            let shared = shared.with_ids(ids.clone());
            policy = policy.with_breaker(shared.breaker());
            votes = Some(shared);
        }
    }
    if plan.has_static_members {
        policy = policy.with_instance_id(format!("slot-{slot}"));
    }
    let bus = intercept::message_bus(faults.message_bus(world.bus.clone()), Ears(body.clone()));
    let bus = trace::message_bus(world, &who, bus);
    let mut builder = Runner::builder(bus, control, PREFIX)
        .with_ids(ids)
        .with_clock(world.clock.clone())
        .with_instance(format!("slot-{slot}"));
    if plan.has_store {
        let store = faults.event_store(world.store.clone());
        builder = builder.with_event_store(trace::event_store(world, &who, store));
    }
    let runner = register(builder, plan.role, body.clone(), policy)
        .build()
        .unwrap();
    Service {
        runner,
        votes,
        body,
    }
}

fn register(
    builder: foldstream::runner::RunnerBuilder,
    role: Role,
    body: Arc<Body>,
    policy: ProcessorPolicy,
) -> foldstream::runner::RunnerBuilder {
    match role {
        Role::Listener => builder.listener_with(Reacts(body), policy),
        Role::Writes | Role::Buffers => builder.projector_with(Projects(body), policy),
    }
}

impl Service {
    /// Runs until `shutdown`. Returns `None` if the process has died before.
    async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Option<RunnerReport> {
        let (stop, faults) = (CancellationToken::new(), self.body.faults.clone());
        let votes = async {
            if let Some(votes) = self.votes {
                votes.run(stop.clone()).await;
            }
        };
        let run = async {
            let report = self.runner.run(shutdown).await;
            stop.cancel();
            report
        };
        let both = faults.run(async { tokio::join!(run, votes) });
        let report = both.await.map(|(report, ())| report);
        // Nothing of a process that has ended happens any more.
        faults.crash();
        report
    }
}

/// Halts that the handlers of this simulation cause themselves.
const HALTS: [&str; 2] = [
    "this process is broken",
    "cannot make its read model durable",
];

fn check_report(world: &World, report: RunnerReport) {
    if let Err(error) = report.into_result() {
        let text = chain_of(&*error);
        match HALTS.iter().find(|halt| text.contains(**halt)) {
            Some(halt) => world.hit(format!("halted: {halt}")),
            None => world.violated(format!("the processor has halted: {text}")),
        }
    }
}

fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Runs one life after the other in one slot, until `stop`.
pub(super) async fn lives(world: Arc<World>, slot: u64, stop: CancellationToken) {
    let mut rng = fastrand::Rng::with_seed(world.plan.seed * 16 + slot);
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let id = slot * 1_000 + number;
        let is_peaceful = world.plan.is_peaceful;
        let service = service(&world, slot, id, rng.u64(..), !is_peaceful);
        let (body, faults) = (service.body.clone(), service.body.faults.clone());
        let life = Life {
            length: Duration::from_millis(rng.u64(500..12_000)),
            is_killed: !is_peaceful && rng.bool(),
            steps: rng.u32(0..60),
        };
        let shutdown = life.until_stopped(&stop);
        world.note(|| format!("i{id} starts"));
        tokio::select! {
            biased;
            () = life.until_killed(), if life.is_killed => {
                world.hit("killed at any await");
                world.note(|| format!("i{id} is killed"));
            }
            () = disturb(&world, &body, rng.u64(..)), if !is_peaceful => {}
            report = service.run(shutdown) => match report {
                Some(report) => {
                    world.hit("stopped");
                    world.note(|| format!("i{id} has stopped"));
                    check_report(&world, report);
                }
                None => world.note(|| format!("i{id} has died")),
            },
        }
        faults.crash();
        count(&world, &faults);
        sleep(Duration::from_millis(rng.u64(0..1_000))).await;
    }
}

/// Expels the instance now and then. Sometimes it hears of that only much later, and goes on with
/// its old assignment meanwhile; sometimes the whole process stands still.
async fn disturb(world: &World, body: &Body, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        sleep(Duration::from_millis(rng.u64(500..6_000))).await;
        let kind = rng.u32(0..4);
        let time = Duration::from_millis(rng.u64(200..4_000));
        if kind == 1 || kind == 2 {
            world.hit("zombie");
            *body.deaf_until.lock().unwrap() = Some(Instant::now() + time);
        }
        if kind == 3 {
            world.hit("frozen process");
            body.faults.freeze();
        }
        if kind > 0 {
            let number = rng.u32(0..world.plan.partitions);
            let partition = PartitionId::new(TOPIC, number);
            world.note(|| format!("i{}: kind {kind} for {time:?}, expel {number}", body.id));
            world.bus.expel_owner(super::world::GROUP, &partition);
        }
        if kind == 3 {
            sleep(time).await;
            body.faults.thaw();
        }
    }
}

/// Runs an instance without faults until `rest` is over.
pub(super) async fn heal(world: &Arc<World>, id: u64, rest: impl Future<Output = ()>) {
    let service = service(world, 0, id, world.plan.seed ^ id, false);
    let stop = CancellationToken::new();
    let rest = async {
        rest.await;
        stop.cancel();
    };
    let (report, ()) = tokio::join!(service.run(stop.cancelled()), rest);
    match report {
        Some(report) => check_report(world, report),
        None => world.violated("an instance without faults has died".into()),
    }
}

/// The faults of operators, whose writes are checked like those of instances.
pub(super) fn operators_faults(world: &Arc<World>, seed: u64) -> Faults {
    let faults = faults(world, 0, seed, false);
    let calls = [Op::Get, Op::Put, Op::Delete, Op::Range];
    faults.set([
        Fault::CrashBefore.on([Op::Put, Op::Delete]).one_in(50),
        Fault::CrashAfter.on([Op::Put, Op::Delete]).one_in(50),
        Fault::Unavailable.on(calls).one_in(40),
        Fault::LoseReply.on(calls).one_in(40),
    ]);
    faults
}
