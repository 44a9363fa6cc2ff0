//! The lines of the log on which an alarm of `deploy/` counts.
use super::world::{TIMEOUT, World, handle, stream};
use foldstream::{Version, publisher::DirtyReason};
use foldstream_testkit::faults::Fault;
use serde_json::{Value, json};
use std::{cell::RefCell, io, process::Command};

thread_local! {
    /// The text that the test of this thread has logged.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to the log of the thread.
struct Log;
impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend(bytes));
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the lines of a log, each of which must be a JSON object.
fn lines(log: &[u8]) -> Vec<Value> {
    let lines = log.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let lines: Vec<Value> = lines.map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert!(lines.iter().all(Value::is_object), "{lines:?}");
    lines
}

/// The pattern of CloudWatch compares a number at the top of the object.
#[tokio::test(start_paused = true)]
async fn the_alarm_on_dirty_streams_counts_what_the_sweep_logs() {
    // The format of the program, see below. It is that of all threads: what another test logs first
    // would be lost to a subscriber of this thread alone.
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(|| Log)
        .init();
    let world = World::new();
    for id in ["a", "b", "c"] {
        world.append(id, 1).await;
        let (id, why) = (stream(id), DirtyReason::Backlog);
        let aside = world.publisher();
        aside.set_aside(&id, Version::new(1), why).await.unwrap();
    }
    world
        .faults
        .set([world.fail_runs_of(&["b", "c"], Fault::Unavailable)]);
    let sweep = json!({"foldstream": "sweep"});
    handle(&world, &world.handler(), &sweep, TIMEOUT)
        .await
        .unwrap();
    let counted = || {
        let lines = lines(&LOG.take());
        let found = lines.iter().filter_map(|line| line["still_dirty"].as_u64());
        found.collect::<Vec<_>>()
    };
    assert_eq!(counted(), [2]);
    let template = include_str!("../../../../deploy/cloudformation/lambda-publisher.yaml");
    assert!(template.contains(r#"FilterPattern: "{ $.still_dirty > 0 }""#));

    world.faults.set([]);
    tokio::time::sleep(2 * TIMEOUT).await;
    handle(&world, &world.handler(), &sweep, TIMEOUT)
        .await
        .unwrap();
    assert_eq!(counted(), [0], "the alarm ends");
}

#[test]
fn the_program_logs_one_flat_json_object_per_line() {
    let program = Command::new(env!("CARGO_BIN_EXE_bootstrap"))
        .env_clear()
        // Without brokers, the program says what is missing and ends.
        .env("KAFKA_BROKERS", "")
        .env("DYNAMODB_PUBLISH_MODE", "nonsense")
        .output()
        .unwrap();
    assert!(!program.status.success());
    let lines = lines(&program.stdout);
    let last = lines.last().unwrap();
    assert_eq!(last["message"], "the function cannot run");
    assert!(
        last["error"]
            .as_str()
            .unwrap()
            .contains("DYNAMODB_PUBLISH_MODE")
    );
}
