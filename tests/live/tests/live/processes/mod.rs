//! Services of several processes on real servers, which are killed, frozen and replaced.
//!
//! The processes run the program `live_worker` of this package. What they have done is read with
//! the plain clients of the servers, and from a file to which their handlers append each effect.
mod breaker;
mod builds;
mod crashes;
mod outage;
mod replay;
mod second;
mod stored;
mod triggers;

use foldstream::{
    Backoff, Repository,
    operate::{JobRunner, JobStatus, Operator, Reason, Redrive},
    publisher::{PollConfig, PollReport, Publisher, TopicRoute},
};
use foldstream_dynamodb::{DynamoDb, TableOptions, create_tables};
use foldstream_kafka::TopicSpec;
use foldstream_live::{Account, Role, WorkerSettings};
use foldstream_testkit::containers;
use std::{
    fs::OpenOptions,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// The longest time of one step, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(240);

/// The processes of one service, and what they share.
struct Fleet {
    settings: WorkerSettings,
    stores: DynamoDb,
    folder: tempfile::TempDir,
    /// The database of this fleet, if it has one of its own.
    _database: Option<containers::DynamoDb>,
}

impl Fleet {
    /// Creates the tables on the database that all tests share, and the topic unless there are no
    /// brokers.
    async fn open(name: &str, brokers: &str, partitions: u32) -> Self {
        let database = containers::DynamoDb::shared().await;
        Self::on(
            database.endpoint(),
            Role::Accounts,
            name,
            brokers,
            partitions,
        )
        .await
    }

    /// Creates a fleet with a database of its own, under whose load no other test suffers.
    async fn with_own_database(name: &str, brokers: &str, partitions: u32) -> Self {
        let database = containers::DynamoDb::start().await.unwrap();
        let mut fleet = Self::on(
            database.endpoint(),
            Role::Accounts,
            name,
            brokers,
            partitions,
        )
        .await;
        fleet._database = Some(database);
        fleet
    }

    /// Creates a fleet of publishers on this database, in which the table of events has a list of
    /// unpublished commits and a change stream.
    async fn of_publishers(
        name: &str,
        database: containers::DynamoDb,
        brokers: &str,
        partitions: u32,
    ) -> Self {
        let (endpoint, role) = (database.endpoint(), Role::Poller);
        let mut fleet = Self::on(endpoint, role, name, brokers, partitions).await;
        fleet._database = Some(database);
        fleet
    }

    async fn on(database: &str, role: Role, name: &str, brokers: &str, partitions: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = WorkerSettings {
            role,
            instance: "test".into(),
            dynamodb: database.into(),
            brokers: brokers.into(),
            name: crate::kafka::unique(name),
            folder: folder.path().into(),
            failures: 0,
            service: String::new(),
        };
        create_tables(&settings.dynamodb_config(), &TableOptions::default())
            .await
            .unwrap();
        if !brokers.is_empty() {
            let topic = TopicSpec::new(&settings.name, partitions);
            settings.bus().create_topic(&topic).await.unwrap();
        }
        let stores = settings.stores().await;
        Self {
            settings,
            stores,
            folder,
            _database: None,
        }
    }

    fn start(&self, role: Role, instance: &str) -> Worker {
        let settings = WorkerSettings {
            role,
            instance: instance.into(),
            ..self.settings.clone()
        };
        let log = self.folder.path().join(format!("{instance}.log"));
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_live_worker"))
            .env(
                WorkerSettings::VARIABLE,
                serde_json::to_string(&settings).unwrap(),
            )
            .envs([
                ("AWS_LAMBDA_RUNTIME_API", &*settings.service),
                ("AWS_LAMBDA_FUNCTION_NAME", "publisher"),
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Worker {
            instance: instance.into(),
            child,
        }
    }

    fn repository(&self) -> Repository<Account> {
        Repository::new(self.stores.event_store()).with_cache(1_000)
    }

    fn publisher(&self) -> Publisher {
        let (store, control) = (self.stores.event_store(), self.stores.control_store());
        Publisher::new(store, self.settings.bus(), control)
            .with_route(TopicRoute::One(self.settings.name.as_str().into()))
            .with_source("urn:foldstream:live".parse().unwrap())
    }

    fn operator(&self) -> Operator {
        Operator::new(self.stores.control_store())
            .with_store(self.stores.event_store())
            .with_bus(self.settings.bus(), &*self.settings.name)
    }

    /// Says that the cause of all failures is mended.
    fn mend(&self) {
        std::fs::write(self.settings.mended(), "").unwrap();
    }

    /// Redrives all that is parked or dead, and returns how that ended.
    async fn redrive(&self, processor: &str) -> JobStatus {
        let operator = self.operator();
        let reason = Reason::new("ann", "disputes are supported now").unwrap();
        let redrive = Redrive::all(processor);
        let job = operator.redrive(&redrive, &reason).await.unwrap();
        let runner = JobRunner::new(operator, "test");
        let late = tokio::time::sleep(PATIENCE);
        let status = runner.run(processor, job.id, late).await.unwrap();
        assert!(status.is_over(), "{status:?}");
        status
    }
}

/// Publishes what the poller has not published yet.
async fn publish_the_rest(fleet: &Fleet) {
    let publisher = fleet.publisher();
    let left = async || {
        let report = publisher.publish_pending().await.unwrap();
        Some((report.failed.len() + report.published.len()) as u64)
    };
    until_none_is_left("commits to publish", left).await;
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("KEEP").is_some() {
            self.folder.disable_cleanup(true);
            eprintln!("files and logs: {}", self.folder.path().display());
        }
    }
}

/// A poller in a task of its own.
struct Polling {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<PollReport>,
}

impl Polling {
    fn start(publisher: Publisher) -> Self {
        let stop = CancellationToken::new();
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        let (config, stopped) = (
            PollConfig::default().with_backoff(backoff),
            stop.clone().cancelled_owned(),
        );
        let task = tokio::spawn(async move { publisher.poll(config, stopped).await.unwrap() });
        Self { stop, task }
    }

    async fn stop(self) -> PollReport {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

/// A process of the fleet. Dropping the value kills it.
struct Worker {
    instance: String,
    child: Child,
}

impl Worker {
    fn id(&self) -> u32 {
        self.child.id().expect("the process is running")
    }

    fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &self.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    async fn kill(mut self) {
        self.kill_now().await;
    }

    /// Kills the process, which another one may replace.
    async fn kill_now(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Stops the process in order, as an orchestrator does.
    async fn stop(self) {
        self.signal("TERM");
        self.wait().await;
    }

    /// Waits until the process has ended by itself.
    async fn wait(mut self) {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("the process ends").unwrap();
        assert!(status.success(), "{}: {status}", self.instance);
    }

    /// Fails if the process has ended by itself.
    fn assert_running(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert_eq!(ended, None, "{} has ended", self.instance);
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until nothing is left. Fails if there is no progress for a long time.
async fn until_none_is_left(what: &str, mut left: impl AsyncFnMut() -> Option<u64>) {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    loop {
        match left().await {
            Some(0) => return,
            Some(now) if now < least => (least, since) = (now, Instant::now()),
            _ => {}
        }
        assert!(since.elapsed() < PATIENCE, "there are {least} {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
