//! Operators who redrive, discard, skip, pause, resume and fix while everything else goes on, and
//! die in between; and the one who clears up at the end.
use super::{
    checks,
    handlers::stream_of,
    instance::operators_faults,
    trace,
    world::{Event, NAME, World},
};
use foldstream::{
    Version,
    operate::{
        DiscardState, Discarded, EventRef, JobRunner, JobState, LetterAddress, LetterKey,
        OperateError, Operator, Reason, Redrive, Selection,
    },
};
use foldstream_testkit::{SeededIds, faults::Faults};
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const PAGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

fn operator(world: &Arc<World>, faults: &Faults, seed: u64) -> Operator {
    let control = faults.control_store(world.control.clone());
    let control = trace::control_store(world, "operator", control);
    Operator::new(control)
        .with_ids(SeededIds::new(seed ^ 0x0b5))
        .with_clock(world.clock.clone())
}

fn reason() -> Reason {
    Reason::new("ann", "the simulation wants it").unwrap()
}

/// Does one thing after the other, each in a process that may die.
pub(super) async fn operate(world: Arc<World>, stop: CancellationToken) {
    let mut rng = fastrand::Rng::with_seed(world.plan.seed ^ 0x0be7a7e);
    while !stop.is_cancelled() {
        sleep(Duration::from_millis(rng.u64(300..2_500))).await;
        if rng.u32(0..4) == 0 {
            fix_one(&world, &mut rng);
        }
        let faults = operators_faults(&world, rng.u64(..));
        if world.plan.is_peaceful {
            faults.disable();
        }
        let operator = operator(&world, &faults, rng.u64(..));
        let work = timeout(Duration::from_secs(20), act(&world, &operator, &mut rng));
        if faults.run(work).await.is_none() {
            world.hit("an operator died");
        }
        faults.crash();
    }
}

fn fix_one(world: &World, rng: &mut fastrand::Rng) {
    let ailing: Vec<Event> = world.facts().ailments.keys().copied().collect();
    if !ailing.is_empty() {
        world.fix(ailing[rng.usize(0..ailing.len())]);
        world.hit("fixed");
    }
}

async fn act(
    world: &World,
    operator: &Operator,
    rng: &mut fastrand::Rng,
) -> Result<(), OperateError> {
    match rng.u32(0..20) {
        0..10 => redrive(world, operator, rng).await,
        10..14 => discard(world, operator, rng).await,
        14 => skip(world, operator, rng).await,
        15 | 16 => pause(world, operator, rng).await,
        17 => abort(world, operator).await,
        _ => Ok(()),
    }
}

/// Returns the addresses of what waits: in parked streams, and as letters.
async fn waiting(operator: &Operator) -> Result<Vec<LetterAddress>, OperateError> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = operator.letters(NAME, after.as_ref(), PAGE).await?;
        found.extend(page.items.into_iter().map(|letter| letter.address));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let parked = operator.parked(NAME, None, PAGE).await?;
    for stream in parked.items {
        for version in stream.from.get()..=stream.high.get() {
            let key = LetterKey::event(stream.stream.clone(), Version::new(version));
            let address = LetterAddress::new(NAME, 1, stream.partition.clone(), key);
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    Ok(found)
}

async fn redrive(
    world: &World,
    operator: &Operator,
    rng: &mut fastrand::Rng,
) -> Result<(), OperateError> {
    let waiting = waiting(operator).await?;
    let Some(one) = waiting.get(rng.usize(0..waiting.len().max(1))) else {
        world.hit("nothing to redrive");
        return Ok(());
    };
    let selection = match (&one.key, rng.u32(0..4)) {
        (LetterKey::Event { stream, .. }, 0) => Selection::Stream(stream.clone()),
        (key, 1) => Selection::Letter(key.clone()),
        (_, 2) => {
            let groups = operator.letter_groups(Some(NAME)).await?;
            match groups.groups.first() {
                Some(group) => Selection::Group(group.fingerprint),
                None => Selection::All,
            }
        }
        _ => Selection::All,
    };
    let name = format!("{selection:?}");
    let name = name.split('(').next().unwrap_or_default().to_owned();
    let redrive = Redrive::new(NAME, selection);
    let job = operator.redrive(&redrive, &reason()).await?;
    world.note(|| format!("job {} redrives {} events of {name}", job.id, job.events));
    world.hit(format!("redrive of {name}"));
    Ok(())
}

fn event_of(key: &LetterKey) -> Option<Event> {
    match key {
        LetterKey::Event { stream, version } => Some((stream.id().parse().unwrap(), version.get())),
        _ => None,
    }
}

/// Asks for a discard. An event may be left out from the moment at which the request may be there.
async fn ask(
    world: &World,
    event: Event,
    request: impl Future<Output = Result<Discarded, OperateError>>,
) -> Result<(), OperateError> {
    let is_new = world.facts().asked.insert(event);
    world.note(|| format!("discard of {event:?} is asked"));
    match request.await {
        Ok(Discarded { state: None, .. }) if is_new => {
            // There was nothing at the address.
            world.facts().asked.remove(&event);
        }
        answer => {
            answer?;
            world.hit("discard asked");
        }
    }
    Ok(())
}

async fn discard(
    world: &World,
    operator: &Operator,
    rng: &mut fastrand::Rng,
) -> Result<(), OperateError> {
    acknowledge(world, operator).await?;
    let waiting = waiting(operator).await?;
    let Some(one) = waiting.get(rng.usize(0..waiting.len().max(1))) else {
        return Ok(());
    };
    let reason = reason();
    let request = operator.discard(one, &reason);
    match event_of(&one.key) {
        Some(event) => ask(world, event, request).await,
        None => request.await.map(|_| ()),
    }
}

async fn skip(
    world: &World,
    operator: &Operator,
    rng: &mut fastrand::Rng,
) -> Result<(), OperateError> {
    let events: Vec<Event> = world.facts().events.iter().copied().collect();
    let Some(event) = events.get(rng.usize(0..events.len().max(1))).copied() else {
        return Ok(());
    };
    world.hit("skip asked");
    let of = EventRef::new(stream_of(event.0), Version::new(event.1));
    let reason = reason();
    let request = operator.skip(NAME, &of, &reason);
    ask(world, event, request).await
}

async fn pause(
    world: &World,
    operator: &Operator,
    rng: &mut fastrand::Rng,
) -> Result<(), OperateError> {
    operator.pause(NAME, &reason()).await?;
    world.hit("paused");
    sleep(Duration::from_millis(rng.u64(1_000..9_000))).await;
    operator.resume(NAME, &reason()).await?;
    world.hit("resumed");
    Ok(())
}

async fn abort(world: &World, operator: &Operator) -> Result<(), OperateError> {
    let page = operator.jobs(NAME, None).await?;
    if let Some(job) = page.jobs.iter().find(|job| !job.is_over()) {
        operator.abort(NAME, job.id, &reason()).await?;
        world.hit("job aborted");
    }
    Ok(())
}

/// Notes what the owners have said about discards.
async fn acknowledge(world: &World, operator: &Operator) -> Result<(), OperateError> {
    let asked = world.facts().asked.clone();
    for event in asked {
        let key = LetterKey::event(stream_of(event.0), Version::new(event.1));
        let address = LetterAddress::new(NAME, 1, world.partition_of(event.0), key);
        let state = operator.discard_state(&address).await?;
        let mut facts = world.facts();
        if state == Some(DiscardState::Passed) && !facts.effects.contains_key(&event) {
            let moment = facts.moment();
            facts.passed.entry(event).or_insert(moment);
            drop(facts);
            world.hit("discard passed");
        }
    }
    Ok(())
}

/// Executes jobs, in processes that die now and then.
pub(super) async fn run_jobs(world: Arc<World>, stop: CancellationToken) {
    let mut rng = fastrand::Rng::with_seed(world.plan.seed ^ 0xb5e5);
    while !stop.is_cancelled() {
        let faults = operators_faults(&world, rng.u64(..));
        if world.plan.is_peaceful {
            faults.disable();
        }
        let operator = operator(&world, &faults, rng.u64(..));
        let runner = JobRunner::new(operator, "jobs").with_poll(Duration::from_millis(700));
        let life = Duration::from_millis(rng.u64(1_000..15_000));
        let work = runner.run_open(std::future::pending());
        match timeout(life, faults.run(work)).await {
            Ok(Some(Ok(jobs))) if jobs > 0 => world.hit("job done"),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => world.hit("a job runner died"),
        }
        faults.crash();
        sleep(Duration::from_millis(rng.u64(300..1_500))).await;
    }
}

/// Waits until everything is handled, redrives what is left, and discards what nobody can read.
pub(super) async fn clear_up(world: &Arc<World>) {
    let operator = operator(world, &Faults::none(), world.plan.seed);
    for round in 0..60 {
        sleep(Duration::from_secs(6)).await;
        if world.violations().is_some() {
            return;
        }
        match step(world, &operator, round).await {
            Ok(true) => return,
            Ok(false) => {}
            // No instance has lived long enough to start.
            Err(OperateError::UnknownProcessor { .. } | OperateError::NoPartitions { .. }) => {}
            Err(error) => return world.violated(format!("an operator without faults: {error:?}")),
        }
    }
    world.violated("it does not come to rest".into());
}

/// Returns true if nothing is left to do.
async fn step(world: &World, operator: &Operator, round: u32) -> Result<bool, OperateError> {
    operator.resume(NAME, &reason()).await?;
    let waiting = waiting(operator).await?;
    let is_at_end = world.is_committed_to_the_end(&checks::ends(world).await);
    let is_open = operator
        .jobs(NAME, None)
        .await?
        .jobs
        .iter()
        .any(|job| !job.is_over());
    if waiting.is_empty() && is_at_end && !is_open {
        return Ok(true);
    }
    if is_open {
        run_open(operator).await?;
        return Ok(false);
    }
    for address in &waiting {
        match event_of(&address.key) {
            None => {
                operator.discard(address, &reason()).await?;
                world.hit("unreadable record discarded");
            }
            // An operator has died in the middle of a discard, which must be repeated.
            Some(event) if world.facts().asked.contains(&event) => {
                operator.discard(address, &reason()).await?;
            }
            Some(_) => {}
        }
    }
    if !waiting
        .iter()
        .any(|address| event_of(&address.key).is_some())
    {
        return Ok(false);
    }
    let redrive = Redrive::all(NAME);
    let expected = operator.dry_run(&redrive).await?;
    let before = world.facts().calls_of_history;
    let job = operator.redrive(&redrive, &reason()).await?;
    world.note(|| format!("round {round}: job {} of {} events", job.id, job.events));
    if job.events != expected.events {
        world.violated(format!("dry run {expected:?}, job {job:?}"));
    }
    run_open(operator).await?;
    let done = operator.job(NAME, job.id).await?;
    let calls = world.facts().calls_of_history - before;
    if done.state != JobState::Done {
        return Ok(false);
    }
    world.hit("redriven at the end");
    let is_exact = done.counts.failed == 0 && done.counts.gone == 0 && is_at_end;
    if is_exact && done.counts.handled != expected.events {
        world.violated(format!("dry run {expected:?}, done {done:?}"));
    }
    world.note(|| format!("{:?}, {calls} calls", done.counts));
    Ok(false)
}

async fn run_open(operator: &Operator) -> Result<(), OperateError> {
    let runner = JobRunner::new(operator.clone(), "the last").with_poll(Duration::from_secs(1));
    let stop = sleep(Duration::from_secs(60));
    runner.run_open(stop).await.map(|_| ())
}
