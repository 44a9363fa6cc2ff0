//! Redrives: selection, dry run, jobs.
use super::world::{World, address, hex, reason, stream};
use foldstream::{
    Version,
    operate::{
        JobRunner, JobState, JobStatus, LetterKey, OperateError, Operator, Redrive, RedriveSize,
        Selection,
    },
    ports::{ControlStore, RangeQuery},
};
use foldstream_testkit::faults::{Call, Fault, Op};
use std::{future::pending, num::NonZeroU32, time::Duration};
use tokio::time::{Instant, timeout};

fn sizes(size: RedriveSize) -> (u64, u64, u64) {
    (size.streams, size.letters, size.events)
}
fn runner(world: &World) -> JobRunner {
    JobRunner::new(world.operator(), "host-1").with_poll(Duration::from_millis(100))
}

/// Creates the job of a redrive of everything.
async fn redrive_all(operator: &Operator) -> JobStatus {
    let all = Redrive::all("billing");
    operator.redrive(&all, &reason()).await.unwrap()
}
/// An operator who has created the job of a redrive of everything.
async fn begun(world: &World) -> (Operator, JobStatus) {
    let operator = world.operator();
    let job = redrive_all(&operator).await;
    (operator, job)
}

#[tokio::test(start_paused = true)]
async fn a_redrive_of_an_empty_list_ends_at_once_and_leaves_a_later_one_possible() {
    let world = World::new(3).await;
    let operator = world.operator();
    let all = Redrive::all("billing");
    let empty = operator.redrive(&all, &reason()).await.unwrap();
    assert_eq!(
        (empty.state, empty.items, empty.events),
        (JobState::Done, 0, 0)
    );
    assert!(empty.is_over());
    let status = runner(&world)
        .run("billing", empty.id, pending())
        .await
        .unwrap();
    assert_eq!(status, empty);
    world.clock.advance(Duration::from_secs(1));
    world.park("a", 3, 5, 1).await;
    let later = operator.redrive(&all, &reason()).await.unwrap();
    assert_eq!(
        (later.state, later.items, later.events),
        (JobState::Running, 1, 3)
    );
    assert_ne!(later.id, empty.id);
    let numbers: Vec<_> = world
        .audit()
        .await
        .into_iter()
        .map(|entry| entry.2)
        .collect();
    assert_eq!(numbers, [Some(0), Some(1)]);
}

#[tokio::test]
async fn a_redrive_selects_one_event_a_stream_a_group_or_all() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    world.park("b", 2, 2, 2).await;
    world.letter(0, "c", 7, 1).await;
    world.letter(0, "c", 9, 2).await;
    world
        .letter_of("billing", 0, &format!("!\u{1f}{:020}", 41), 2)
        .await;
    let operator = world.operator();
    let key = |id: &str, version| LetterKey::event(stream(id), Version::new(version));
    for (selection, expected) in [
        (Selection::All, (2, 3, 3 + 1 + 3)),
        (Selection::Group(hex(1).parse().unwrap()), (1, 1, 4)),
        (Selection::Group(hex(2).parse().unwrap()), (1, 2, 3)),
        (Selection::Group(hex(3).parse().unwrap()), (0, 0, 0)),
        (Selection::Stream(stream("a")), (1, 0, 3)),
        (Selection::Stream(stream("c")), (0, 2, 2)),
        (Selection::Stream(stream("z")), (0, 0, 0)),
        // The event that has failed alone. Those after it cannot overtake it.
        (Selection::Letter(key("a", 3)), (1, 0, 1)),
        (Selection::Letter(key("a", 4)), (0, 0, 0)),
        (Selection::Letter(key("c", 9)), (0, 1, 1)),
        (
            Selection::Letter(LetterKey::Record(foldstream::ports::Offset::new(41))),
            (0, 1, 1),
        ),
    ] {
        let redrive = Redrive::new("billing", selection.clone());
        let size = operator.dry_run(&redrive).await.unwrap();
        assert_eq!(sizes(size), expected, "{selection}");
        let job = operator.redrive(&redrive, &reason()).await.unwrap();
        assert_eq!(
            (job.items, job.events),
            (expected.0 + expected.1, expected.2)
        );
        operator.abort("billing", job.id, &reason()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_discarded_or_redriven_already_is_not_selected() {
    let world = World::new(1).await;
    world.park("a", 3, 9, 1).await;
    world.park("b", 1, 1, 1).await;
    world.letter(0, "c", 7, 1).await;
    let operator = world.operator();
    for (id, version) in [("a", 4), ("a", 9), ("b", 1), ("c", 7)] {
        operator
            .discard(&address(id, version), &reason())
            .await
            .unwrap();
    }
    // The letter of a version that is handled already, left by a process that died.
    world.letter(0, "a", 2, 1).await;
    let row = format!(
        r#"{{"i":"{0}","f":1,"h":4,"s":"requested","b":"bob","p":"{0}","n":1,"t":7}}"#,
        hex(1)
    );
    world.put("park/billing/1/orders/0", "cart#d", &row).await;
    world.letter(0, "d", 1, 1).await;
    let size = operator.dry_run(&Redrive::all("billing")).await.unwrap();
    assert_eq!(sizes(size), (1, 0, 5));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    world.letter(0, "c", 7, 1).await;
    world
        .operator()
        .dry_run(&Redrive::all("billing"))
        .await
        .unwrap();
    assert_eq!(
        world.faults.calls(Op::Put) + world.faults.calls(Op::Delete),
        0
    );
}

#[tokio::test]
async fn a_selection_is_frozen_in_pages_and_what_comes_later_is_not_in_it() {
    let world = World::new(2).await;
    for n in 0..250 {
        world.park(&format!("s{n:03}"), 1, 2, 1).await;
    }
    world.letter(1, "c", 7, 1).await;
    let (operator, job) = begun(&world).await;
    assert_eq!((job.items, job.events), (251, 501));
    world.park("later", 1, 1, 1).await;
    world.park("s000", 1, 9, 1).await;
    let found = operator.job("billing", job.id).await.unwrap();
    assert_eq!(found, job);
    let pages = world.texts(&format!("job/billing/{}", job.id)).await;
    let names: Vec<_> = pages.iter().map(|(sort, _)| sort.as_str()).collect();
    assert_eq!(names, ["00000000", "00000001", "00000002"]);
    assert!(!pages.iter().any(|(_, page)| page.contains("later")));
    assert!(
        pages[0]
            .1
            .contains(r#""s":"cart#s000","i":"00000000000000000000000000000001","f":1,"h":2,"#)
    );
    assert_eq!(operator.jobs("billing", None).await.unwrap().jobs, [job]);
}

/// Plays the owner: ends every request by deleting the park row, or parks the stream again.
async fn serve(world: &World, failing: &str) {
    for (sort, row) in world.texts("park/billing/1/orders/0").await {
        if !row.contains(r#""s":"requested""#) {
            continue;
        }
        assert!(row.contains(r#""b":"ann","j":""#), "{row}");
        if sort == format!("cart#{failing}") {
            let job = row
                .split(r#""j":""#)
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            let id = row
                .split(r#""i":""#)
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            // One event is done, the next one has failed.
            let row = format!(
                r#"{{"i":"{id}","f":4,"h":5,"s":"parked","p":"{}","n":1,"t":7,"l":"{job}"}}"#,
                hex(1)
            );
            world.put("park/billing/1/orders/0", &sort, &row).await;
        } else {
            world.delete("park/billing/1/orders/0", &sort).await;
        }
    }
    for (sort, _) in world.texts("ask/billing/1/orders/0").await {
        world.delete("dlq/billing/1/orders/0", &sort).await;
        world.delete("ask/billing/1/orders/0", &sort).await;
    }
}

async fn served<T>(world: &World, failing: &str, work: impl Future<Output = T>) -> T {
    let owner = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            serve(world, failing).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = owner => unreachable!("the owner never ends"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_counts_what_is_done_what_failed_again_and_what_was_gone() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    world.park("b", 3, 5, 1).await;
    world.park("gone", 3, 5, 1).await;
    world.letter(0, "c", 7, 1).await;
    let (operator, job) = begun(&world).await;
    world.delete("park/billing/1/orders/0", "cart#gone").await;
    let runner = runner(&world);
    let run = runner.run("billing", job.id, pending());
    let status = timeout(Duration::from_secs(60), served(&world, "b", run)).await;
    let status = status
        .expect("what fails again is not asked for again")
        .unwrap();
    assert_eq!(status.state, JobState::Done);
    let counts = status.counts;
    assert_eq!((counts.done, counts.failed, counts.gone), (2, 1, 1));
    assert_eq!(counts.handled, 3 + 1 + 1);
    assert_eq!(operator.job("billing", job.id).await.unwrap(), status);
}

#[tokio::test(start_paused = true)]
async fn a_job_asks_for_no_more_events_per_second_than_its_rate() {
    let world = World::new(1).await;
    for n in 0..10 {
        world.park(&format!("s{n}"), 1, 5, 1).await;
    }
    let operator = world.operator();
    let slow = Redrive::all("billing").with_rate(NonZeroU32::new(5).unwrap());
    let job = operator.redrive(&slow, &reason()).await.unwrap();
    assert_eq!(job.rate, Some(5));
    let (started, runner) = (Instant::now(), runner(&world));
    let run = runner.run("billing", job.id, pending());
    let status = served(&world, "none", run).await.unwrap();
    assert_eq!(status.counts.handled, 50);
    // Ten streams of five events, one per second.
    let seconds = started.elapsed().as_secs();
    assert!((9..=11).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn an_aborted_job_takes_back_its_requests_and_no_others() {
    let world = World::new(1).await;
    for id in ["a", "b"] {
        world.park(id, 3, 5, 1).await;
    }
    world.letter(0, "c", 7, 1).await;
    let (operator, job) = begun(&world).await;
    let runner = runner(&world);
    let stopped = runner.run(
        "billing",
        job.id,
        tokio::time::sleep(Duration::from_secs(2)),
    );
    let status = stopped.await.unwrap();
    assert_eq!((status.state, status.counts.done), (JobState::Running, 0));
    // Since then the stream b was redriven, and another operator asks for it.
    let row = format!(
        r#"{{"i":"{0}","f":3,"h":5,"s":"requested","b":"bob","p":"{0}","n":1,"t":7}}"#,
        hex(1)
    );
    world.put("park/billing/1/orders/0", "cart#b", &row).await;
    let aborted = operator.abort("billing", job.id, &reason()).await.unwrap();
    assert_eq!((aborted.affected, aborted.state), (2, JobState::Aborted));
    let rows = world.texts("park/billing/1/orders/0").await;
    assert!(
        rows[0].1.contains(r#""s":"parked""#) && !rows[0].1.contains(r#""j""#),
        "{rows:?}"
    );
    assert_eq!(rows[1].1, row);
    assert!(world.texts("ask/billing/1/orders/0").await.is_empty());
    let again = operator.abort("billing", job.id, &reason()).await.unwrap();
    assert_eq!((again.affected, again.state), (0, JobState::Aborted));
    let status = runner.run("billing", job.id, pending()).await.unwrap();
    assert_eq!(status.state, JobState::Aborted);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_another_process_executes_is_aborted_by_that_process() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    let (operator, job) = begun(&world).await;
    let runner = runner(&world);
    let run = runner.run("billing", job.id, pending());
    let abort = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        operator.abort("billing", job.id, &reason()).await.unwrap()
    };
    let (status, aborted) = tokio::join!(run, abort);
    assert_eq!((aborted.affected, aborted.state), (1, JobState::Aborting));
    assert_eq!(status.unwrap().state, JobState::Aborted);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_selection_was_not_completed_redrives_nothing() {
    for at in 2..=6 {
        let world = World::new(1).await;
        for n in 0..150 {
            world.park(&format!("s{n:03}"), 1, 2, 1).await;
        }
        world.faults.set([Fault::CrashBefore.on(Op::Put).at(at)]);
        let operator = world.operator();
        let (all, reason) = (Redrive::all("billing"), reason());
        let redrive = operator.redrive(&all, &reason);
        assert!(
            world.faults.run(redrive).await.is_none(),
            "it died at put {at}"
        );
        let faults = world.faults.restart();
        faults.disable();
        let operator = foldstream::operate::Operator::new(world.rows.clone());
        let runner = JobRunner::new(operator.clone(), "host-1");
        let over = timeout(Duration::from_secs(60), runner.run_open(pending())).await;
        over.expect("it waits for the lease of the dead process, and ends the job")
            .unwrap();
        for job in operator.jobs("billing", None).await.unwrap().jobs {
            assert_eq!(job.state, JobState::Aborted, "put {at}");
        }
        for (_, row) in world.texts("park/billing/1/orders/0").await {
            assert!(row.contains(r#""s":"parked""#), "{row}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn open_jobs_of_all_processors_are_executed_the_oldest_first() {
    let world = World::new(1).await;
    world.processor("mailing").await;
    world.park("a", 3, 5, 1).await;
    world.letter(0, "c", 7, 1).await;
    let operator = world.operator();
    let key = LetterKey::event(stream("c"), Version::new(7));
    let of_letter = Redrive::new("billing", Selection::Letter(key));
    let first = operator.redrive(&of_letter, &reason()).await.unwrap().id;
    let second = redrive_all(&operator).await.id;
    assert!(first < second);
    let runner = runner(&world);
    let over = served(&world, "none", runner.run_open(pending()))
        .await
        .unwrap();
    assert_eq!(over, 2);
    let counts = async |job| operator.job("billing", job).await.unwrap().counts;
    assert_eq!(counts(first).await.done, 1);
    // The letter was in both selections, and gone when the second asked.
    assert_eq!(
        (counts(second).await.done, counts(second).await.gone),
        (1, 1)
    );
    assert_eq!(runner.run_open(pending()).await.unwrap(), 0);
}

#[tokio::test]
async fn an_unknown_job_is_an_error() {
    let world = World::new(1).await;
    let (operator, id) = (world.operator(), hex(7).parse().unwrap());
    for error in [
        operator.job("billing", id).await.unwrap_err(),
        operator.abort("billing", id, &reason()).await.unwrap_err(),
        runner(&world)
            .run("billing", id, pending())
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, OperateError::UnknownJob { .. }), "{error}");
    }
    assert!(world.audit().await.is_empty(), "nothing was done");
}

#[tokio::test]
async fn jobs_are_kept_for_400_days() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    let operator = world.operator();
    redrive_all(&operator).await;
    let day = Duration::from_secs(24 * 3600);
    world.clock.advance(399 * day);
    assert_eq!(operator.jobs("billing", None).await.unwrap().jobs.len(), 1);
    world.clock.advance(2 * day);
    assert_eq!(operator.jobs("billing", None).await.unwrap().jobs.len(), 0);
    world.rows.delete_expired();
    let rows = world
        .rows
        .range(&RangeQuery::new("job/billing"))
        .await
        .unwrap();
    assert!(rows.rows.is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_over_a_job_tells_the_owners_of_requests_that_are_there_already() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    let operator = world.operator();
    let job = redrive_all(&operator).await.id;
    // It dies after its request, and before it has told the owner.
    let is_token =
        |call: &Call<'_>| matches!(call, Call::Put { row, .. } if row.key.sort == "!changed");
    world
        .faults
        .set([Fault::CrashBefore.on(Op::Put).matching(is_token).at(2)]);
    let dying = runner(&world);
    let run = dying.run("billing", job, pending());
    assert!(world.faults.run(run).await.is_none(), "it died");
    world.faults.restart().disable();
    let before = world.token().await;
    let rows = world.texts("park/billing/1/orders/0").await;
    assert!(rows[0].1.contains(r#""s":"requested""#));
    let operator = foldstream::operate::Operator::new(world.rows.clone());
    let next = JobRunner::new(operator, "host-2");
    let stop = tokio::time::sleep(Duration::from_secs(40));
    let status = next.run("billing", job, stop).await.unwrap();
    assert_eq!(
        status.state,
        JobState::Running,
        "the owner has not served it"
    );
    assert_ne!(world.token().await, before);
    assert_eq!(
        world.texts("park/billing/1/orders/0").await,
        rows,
        "asked once"
    );
}
