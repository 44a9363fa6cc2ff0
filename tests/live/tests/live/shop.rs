//! The shop on real servers, as four processes. They report the totals of the file, whatever
//! happens to them.
//!
//! Clients that know nothing of foldstream count the events in the store and in the topic.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use aws_sdk_dynamodb::{Client, types::AttributeValue};
use foldstream_dynamodb::{DynamoDb, PublishMode};
use foldstream_live::dynamodb_config;
use foldstream_testkit::{containers, length};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaResult,
    message::Headers as _,
};
use tokio::process::{Child, Command};

/// The longest time of one step.
const PATIENCE: Duration = Duration::from_secs(180);
/// The longest time of one answer of Kafka.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the program with its adapters. CI has built it. Otherwise it is built here, into the
/// folder of this build.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("FOLDSTREAM_SHOP") {
        Some(path) => path.into(),
        None => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = std::process::Command::new(cargo)
                .args([
                    "build",
                    "-p",
                    "shop",
                    "--features",
                    "production",
                    "--message-format=json",
                ])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .stderr(Stdio::inherit())
                .output()
                .expect("cargo runs");
            assert!(built.status.success(), "the shop does not build");
            let messages = String::from_utf8(built.stdout).unwrap();
            let messages = messages
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            let mut executables =
                messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
            executables.next_back().expect("cargo names the program")
        }
    })
}

/// A shop of its own on the shared servers.
struct Shop {
    dynamodb: String,
    kafka: String,
    name: String,
    folder: tempfile::TempDir,
}

impl Shop {
    async fn open(name: &str) -> Self {
        let started = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        Self {
            dynamodb: containers::DynamoDb::shared().await.endpoint().into(),
            kafka: containers::Kafka::shared().await.brokers().into(),
            name: format!("shop-{name}-{started}"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("DYNAMODB_PREFIX", format!("{}-", self.name))
            .env("KAFKA_EVENTS_TOPIC", &self.name)
            .env("KAFKA_GROUP_ID", &self.name)
            .env("DYNAMODB_URL", &self.dynamodb)
            .env("KAFKA_BROKERS", &self.kafka)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for variable in [
            "RUST_LOG",
            "EVENTSTORE_TABLE_NAME",
            "AWS_REGION",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            command.env_remove(variable);
        }
        command
    }

    async fn output(&self, arguments: &[&str]) -> Output {
        let output = tokio::time::timeout(PATIENCE, self.command(arguments).output());
        output
            .await
            .unwrap_or_else(|_| panic!("shop {arguments:?} does not end"))
            .unwrap()
    }

    /// Runs a step that must succeed, and returns its output.
    async fn step(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let [said, complained] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(
            output.status.success(),
            "shop {arguments:?}: {said}{complained}"
        );
        said
    }

    /// Starts a step that runs until it is stopped.
    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }

    fn write(&self, name: &str, lines: &[Line]) -> String {
        let mut text = String::from(
            "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n",
        );
        for Line {
            invoice,
            code,
            quantity,
            price,
            country,
        } in lines
        {
            writeln!(
                text,
                "{invoice},{code},\"A, B\",{quantity},2010-12-01 08:26:00,{price},,{country}"
            )
            .unwrap();
        }
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    }

    async fn report(&self) -> Totals {
        let path = self.folder.path().join("out.json");
        self.step(&["report", path.to_str().unwrap()]).await;
        read_report(&path)
    }

    /// Reports until the totals are as expected.
    async fn reports_at_last(&self, expected: &Totals) {
        let (started, path) = (Instant::now(), self.folder.path().join("out.json"));
        loop {
            // The table may not exist yet.
            let output = self.output(&["report", path.to_str().unwrap()]).await;
            if output.status.success() && read_report(&path) == *expected {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Returns a plain client of the SDK.
    async fn client(&self) -> Client {
        let config = dynamodb_config(&self.dynamodb, &self.name);
        // Tables that the shop creates have what both of its publishers need.
        let config = config.with_publish_mode(PublishMode::Both);
        DynamoDb::connect(config).await.unwrap().client().clone()
    }

    /// Returns the number of events in the table, counted in the JSON arrays of its items: a label
    /// and a payload per event.
    async fn events_in_the_table(&self) -> usize {
        let table = format!("{}-events", self.name);
        let request = self
            .client()
            .await
            .scan()
            .table_name(table)
            .consistent_read(true);
        let mut items = request.into_paginator().items().send();
        let mut events = 0;
        while let Some(item) = items.next().await {
            let item = item.unwrap();
            let list: Vec<serde_json::Value> =
                serde_json::from_str(item["e"].as_s().unwrap()).unwrap();
            let first: usize = item["sk"].as_n().unwrap().parse().unwrap();
            let last = item.get("n").map_or(first, |n: &AttributeValue| {
                n.as_n().unwrap().parse().unwrap()
            });
            assert_eq!(list.len(), 2 * (last + 1 - first));
            events += list.len() / 2;
        }
        events
    }

    async fn has_rows(&self) -> bool {
        let table = format!("{}-events-models", self.name);
        let scanned = self
            .client()
            .await
            .scan()
            .table_name(table)
            .limit(1)
            .send()
            .await;
        scanned.is_ok_and(|page| page.count > 0)
    }

    async fn has_records(&self) -> bool {
        let (kafka, topic) = (self.kafka.clone(), self.name.clone());
        let asked = move || {
            let partitions = partitions(&consumer(&kafka), &topic);
            partitions.is_ok_and(|all| !all.iter().all(|(_, low, high)| low == high))
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    }

    /// Reads the whole topic, and returns the number of its distinct pairs of key and version.
    /// Checks that the first records of each key come in order.
    async fn events_in_the_topic(&self) -> usize {
        let (kafka, topic) = (self.kafka.clone(), self.name.clone());
        tokio::task::spawn_blocking(move || read_topic(&kafka, &topic))
            .await
            .unwrap()
    }
}

fn consumer(kafka: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", kafka)
        .set("group.id", "counts")
        .set("enable.auto.commit", "false");
    config.create().unwrap()
}

/// Returns each partition with its first and its next offset. Empty if the topic does not exist.
///
/// # Errors
/// If the brokers do not know yet who leads a partition of a new topic.
fn partitions(consumer: &BaseConsumer, topic: &str) -> KafkaResult<Vec<(i32, i64, i64)>> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let offsets = |partition: i32| {
        let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT)?;
        Ok((partition, low, high))
    };
    metadata.topics()[0]
        .partitions()
        .iter()
        .map(|partition| offsets(partition.id()))
        .collect()
}

fn read_topic(kafka: &str, topic: &str) -> usize {
    let consumer = consumer(kafka);
    let (mut assignment, mut left) = (TopicPartitionList::new(), 0);
    for (partition, low, high) in partitions(&consumer, topic).unwrap() {
        left += high - low;
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut versions = BTreeMap::<Vec<u8>, u64>::new();
    while left > 0 {
        let message = consumer.poll(TIMEOUT).expect("a record in time").unwrap();
        let headers = message.headers().unwrap();
        let version = headers
            .iter()
            .find(|header| header.key == "ce_fsversion")
            .unwrap()
            .value
            .unwrap();
        let version: u64 = std::str::from_utf8(version).unwrap().parse().unwrap();
        let newest = versions.entry(message.key().unwrap().to_vec()).or_default();
        // Duplicates may come, but a new version is the next one.
        assert!(version <= *newest + 1, "{version} after {newest}");
        *newest = version.max(*newest);
        left -= 1;
    }
    versions
        .values()
        .map(|newest| usize::try_from(*newest).unwrap())
        .sum()
}

struct Line {
    invoice: String,
    code: &'static str,
    quantity: i64,
    price: &'static str,
    country: &'static str,
}

/// Returns invoices of ten lines each, which are not adjacent. Every seventh is a cancellation.
fn lines(invoices: std::ops::Range<usize>) -> Vec<Line> {
    let (codes, prices) = (
        ["85123A", "85123a", "84077", "POST"],
        ["2.55", "0.0", "-11.06", "0.001"],
    );
    let countries = ["United Kingdom", "France", "EIRE"];
    let line = |n: usize, invoice: usize| {
        let is_cancellation = invoice.is_multiple_of(7);
        let units = [6, 1, 0, 48][(n + invoice) % 4];
        Line {
            invoice: format!(
                "{}{}",
                if is_cancellation { "C" } else { "" },
                536_365 + invoice
            ),
            code: codes[(n * 3 + invoice) % codes.len()],
            quantity: if is_cancellation { -units } else { units },
            price: prices[n % prices.len()],
            country: countries[invoice % countries.len()],
        }
    };
    (0..10)
        .flat_map(|n| invoices.clone().map(move |invoice| line(n, invoice)))
        .collect()
}

#[derive(Debug, Default, PartialEq)]
struct Totals {
    units: BTreeMap<String, i64>,
    /// The revenue in thousandths of the unit of a currency.
    revenue: BTreeMap<String, i128>,
    orders: u64,
    events: u64,
}

fn thousandths(text: &str) -> i128 {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    sign * format!("{whole}{fraction:0<3}").parse::<i128>().unwrap()
}

fn aggregate(lines: &[Line]) -> Totals {
    let mut totals = Totals::default();
    for line in lines {
        *totals.units.entry(line.code.into()).or_default() += line.quantity;
        *totals.revenue.entry(line.country.into()).or_default() +=
            i128::from(line.quantity) * thousandths(line.price);
    }
    totals.events = lines.len() as u64;
    totals.orders = lines
        .iter()
        .map(|line| &line.invoice)
        .collect::<BTreeSet<_>>()
        .len() as u64;
    totals
}

fn read_report(path: &Path) -> Totals {
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let products = report["hot_products"].as_array().unwrap().iter();
    let revenue = report["revenue_by_country"].as_object().unwrap().iter();
    Totals {
        units: products
            .map(|p| {
                (
                    p["stock_code"].as_str().unwrap().into(),
                    p["units"].as_i64().unwrap(),
                )
            })
            .collect(),
        revenue: revenue
            .map(|(country, sum)| (country.clone(), thousandths(sum.as_str().unwrap())))
            .collect(),
        orders: report["orders"].as_u64().unwrap(),
        events: report["events"].as_u64().unwrap(),
    }
}

/// Sends a signal, as an orchestrator or an operator would.
fn signal(child: &Child, name: &str) {
    let pid = child.id().expect("the process is running").to_string();
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &pid])
        .status()
        .unwrap();
    assert!(sent.success());
}

async fn end(child: Child) -> Output {
    tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("the process ends")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn four_processes_report_what_the_file_says() {
    let shop = Shop::open("four").await;
    let lines = lines(0..60);
    let (file, expected) = (shop.write("in.csv", &lines), aggregate(&lines));
    shop.step(&["import", &file]).await;
    assert_eq!(shop.events_in_the_table().await, lines.len());
    shop.step(&["publish", "--until-idle"]).await;
    assert_eq!(shop.events_in_the_topic().await, lines.len());
    shop.step(&["run", "--until-caught-up"]).await;
    assert_eq!(shop.report().await, expected);

    // The order itself knows that it was imported, so another import adds nothing.
    let said = shop.step(&["import", "--import", &file]).await;
    assert!(said.contains("60 were there before"), "{said}");
    shop.step(&["publish", "--until-idle"]).await;
    shop.step(&["run", "--until-caught-up"]).await;
    assert_eq!(shop.report().await, expected);
    assert_eq!(shop.events_in_the_table().await, lines.len());
    assert_eq!(shop.events_in_the_topic().await, lines.len());

    // The read model can be deleted, and another processor fills it again from the beginning.
    let table = format!("{}-events-models", shop.name);
    shop.client()
        .await
        .delete_table()
        .table_name(table)
        .send()
        .await
        .unwrap();
    let refused = shop.output(&["run", "--until-caught-up"]).await;
    let complained = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(complained.contains("run another --name"), "{complained}");
    shop.step(&["run", "--until-caught-up", "--name", "sales-2"])
        .await;
    assert_eq!(shop.report().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn processes_that_are_told_to_stop_finish_and_go_on_later() {
    let shop = Shop::open("stop").await;
    let all = lines(0..40);
    let first = lines(0..20);
    let file = shop.write("first.csv", &first);
    let (publisher, runner) = (shop.start(&["publish"]), shop.start(&["run"]));
    shop.step(&["import", &file]).await;
    shop.reports_at_last(&aggregate(&first)).await;
    for child in [&publisher, &runner] {
        signal(child, "TERM");
    }
    for child in [publisher, runner] {
        let ended = end(child).await;
        assert_eq!(ended.status.code(), Some(0));
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(
            said.contains(&format!(" {} ", first.len())),
            "it did all of it: {said}"
        );
    }
    let file = shop.write("all.csv", &all);
    shop.step(&["import", &file]).await;
    // The other trigger knows what the poller has published.
    let (reader, started) = (shop.start(&["stream"]), Instant::now());
    while shop.events_in_the_topic().await < all.len() {
        assert!(started.elapsed() < PATIENCE, "not published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    signal(&reader, "TERM");
    let ended = end(reader).await;
    assert_eq!(ended.status.code(), Some(0));
    let said = String::from_utf8(ended.stdout).unwrap();
    let new = all.len() - first.len();
    assert!(
        said.contains(&format!("published  {new} records")),
        "{said}"
    );
    let said = shop.step(&["run", "--until-caught-up"]).await;
    assert!(
        said.contains(&format!("{} events", all.len() - first.len())),
        "only the new: {said}"
    );
    assert_eq!(shop.report().await, aggregate(&all));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn processes_that_are_killed_lose_nothing_and_count_nothing_twice() {
    for _ in 0..length::of("kills of a publisher and of a runner", 1, 20) {
        kill_a_publisher_and_a_runner().await;
    }
}

async fn kill_a_publisher_and_a_runner() {
    let shop = Shop::open("kill").await;
    let lines = lines(0..60);
    let (file, expected) = (shop.write("in.csv", &lines), aggregate(&lines));
    shop.step(&["import", &file]).await;
    // The publisher is stopped as soon as the first record exists.
    let mut publisher = shop.start(&["publish"]);
    while !shop.has_records().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    publisher.kill().await.unwrap();
    shop.step(&["publish", "--until-idle"]).await;
    // The runner is stopped as soon as the first row exists, perhaps before its offset is
    // committed.
    let mut runner = shop.start(&["run"]);
    while !shop.has_rows().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    runner.kill().await.unwrap();
    // The group waits for the dead member until its session has timed out after 45 s.
    shop.step(&["run", "--until-caught-up"]).await;
    assert_eq!(shop.events_in_the_topic().await, lines.len());
    assert_eq!(shop.report().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn the_story_and_an_import_run_in_one_process_on_real_servers() {
    let shop = Shop::open("one").await;
    let (dynamodb, kafka) = (shop.dynamodb.clone(), shop.kafka.clone());
    let servers = ["--dynamodb", &dynamodb, "--kafka", &kafka];
    let said = shop
        .step(&[&servers[..], &["--customers", "40"]].concat())
        .await;
    assert!(said.contains("They equal a direct aggregation"), "{said}");
    let file = shop.write("in.csv", &lines(0..20));
    let said = shop
        .step(&[&servers[..], &["--import", &file]].concat())
        .await;
    assert!(
        said.contains("the projections equal a direct aggregation of the file"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn an_operator_sees_and_pauses_processors_of_other_processes() {
    let shop = Shop::open("operator").await;
    let lines = lines(0..10);
    let file = shop.write("in.csv", &lines);
    shop.step(&["import", &file]).await;
    shop.step(&["publish", "--until-idle"]).await;
    let by = ["--who", "ann", "--why", "ticket 17"];
    let runner = shop.start(&["run"]);
    shop.reports_at_last(&aggregate(&lines)).await;
    let said = shop.step(&["processors"]).await;
    assert!(said.contains("sales"), "{said}");
    shop.step(&[&["pause", "sales"][..], &by].concat()).await;
    let said = shop.step(&["processors"]).await;
    assert!(said.contains("paused by ann: ticket 17"), "{said}");
    shop.step(&[&["resume", "sales"][..], &by].concat()).await;
    let said = shop.step(&["audit"]).await;
    assert!(said.contains("2 operations"), "{said}");
    // Nothing is set aside, which the exit code tells.
    let nothing = [&["redrive", "sales", "all"][..], &by].concat();
    assert_eq!(shop.output(&nothing).await.status.code(), Some(4));
    let unknown = shop.output(&["parked", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    let complained = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        complained.contains("known are hot-products, sales"),
        "{complained}"
    );
    signal(&runner, "TERM");
    assert_eq!(end(runner).await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn the_bad_day_ends_with_right_totals_on_real_servers() {
    let shop = Shop::open("chaos").await;
    let (dynamodb, kafka) = (shop.dynamodb.clone(), shop.kafka.clone());
    let servers = ["--dynamodb", &dynamodb, "--kafka", &kafka];
    let mut told = shop.command(&[&["--chaos"][..], &servers].concat());
    // A member that is killed holds its partitions until its session has timed out after 45 s.
    let output = tokio::time::timeout(PATIENCE * 4, told.output());
    let output = output.await.expect("the story ends").unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complained}");
    let said = String::from_utf8(output.stdout).unwrap();
    for part in ["0 dead letters", "every order is paid once", "They equal"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}
