//! The operator's commands, on a shop in which an event is parked and two orders are dead letters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use foldstream::{
    BoxError, Timestamp,
    breaker::{BreakerPolicy, DistributedBreaker},
    runner::{ProcessorPolicy, RunnerHandle, Start},
};
use shop::{
    backend::Backend,
    cart::{CartCommand, CartId, CartItem},
    chaos::old_till,
    money::Money,
    operator::{self, CommandError, Console, Outcome},
    payment::Payment,
    pipeline,
    provider::PaymentProvider,
    saga::PaymentSaga,
};
use std::{collections::BTreeMap, time::Duration};
use tokio_util::sync::CancellationToken;

/// Works as `ann`, for a reason.
const BY: [&str; 4] = ["--who", "ann", "--why", "ticket 17"];

struct Shop {
    backend: Backend,
    provider: PaymentProvider,
    handle: RunnerHandle,
}

fn item(quantity: i64) -> CartItem {
    CartItem {
        stock_code: "tea".into(),
        description: String::new(),
        quantity,
        unit_price: Money::from_cents(300),
        invoiced_at: Timestamp::from_micros(0),
        customer: None,
        country: "France".into(),
    }
}

impl Shop {
    /// Opens a shop in which the stream of `cart#till` is parked at its second event, and the
    /// payments of `dear-1` and `dear-2` are dead letters.
    async fn open() -> Self {
        let (backend, provider) = (Backend::embedded(), PaymentProvider::default());
        provider.set_limit(Some(Money::from_cents(1000)));
        let (carts, till) = (backend.carts(), CartId::from("till"));
        let add = |quantity| {
            let item = item(quantity);
            CartCommand::AddItem {
                item,
                in_stock: 100,
            }
        };
        for (order, quantity) in [("cheap", 1), ("dear-1", 50), ("dear-2", 60)] {
            carts.execute(&order.into(), add(quantity)).await.unwrap();
            carts
                .execute(&order.into(), CartCommand::CheckOut)
                .await
                .unwrap();
        }
        carts.execute(&till, add(1)).await.unwrap();
        old_till::ring_up(&backend, &till, &item(2)).await.unwrap();
        let repaired = backend.carts().with_upcasters(old_till::upcasters());
        repaired.execute(&till, add(4)).await.unwrap();
        let handle = start(&backend, &provider, false);
        let shop = Self {
            backend,
            provider,
            handle,
        };
        shop.until("letters list payments", "2 dead letters").await;
        shop.until("parked sales", "known up to 3").await;
        shop
    }

    /// Runs a command line, with its words separated by spaces.
    async fn try_run(&self, line: &str, by: &[&str]) -> Result<(Outcome, String), CommandError> {
        let words: Vec<_> = line.split(' ').chain(by.iter().copied()).collect();
        let command = operator::parse(&words).unwrap();
        let (operator, publisher) = (self.backend.operator(), self.backend.publisher());
        let mut text = Vec::new();
        let stop = CancellationToken::new();
        let outcome = Console::new(&operator, &publisher, &mut text)
            .run(&command, &stop)
            .await?;
        Ok((outcome, String::from_utf8(text).unwrap()))
    }

    /// Shows something, which is never "not all".
    async fn show(&self, line: &str) -> String {
        let (outcome, text) = self.try_run(line, &[]).await.unwrap();
        assert_eq!(outcome, Outcome::Done, "{text}");
        text
    }

    async fn act(&self, line: &str) -> (Outcome, String) {
        self.try_run(line, &BY).await.unwrap()
    }

    async fn refused(&self, line: &str, by: &[&str]) -> String {
        foldstream::chain(&self.try_run(line, by).await.unwrap_err())
    }

    /// Publishes and waits until a list holds a text.
    async fn until(&self, line: &str, text: &str) {
        let looks = async {
            loop {
                pipeline::publish_all(&self.backend).await.unwrap();
                // Before its first start the processor is unknown.
                let shown = self.try_run(line, &[]).await;
                if shown.is_ok_and(|(_, shown)| shown.contains(text)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), looks).await;
        waited.unwrap_or_else(|_| panic!("{line} does not show {text:?}"));
    }

    /// Deploys the release that can read the lines of the till.
    async fn release(&mut self) {
        self.handle.stop();
        self.handle.wait().await.into_result().unwrap();
        self.handle = start(&self.backend, &self.provider, true);
    }

    async fn payment(&self, order: &str) -> Payment {
        let payment = self.backend.payments().load(&order.into()).await.unwrap();
        payment.state().clone()
    }

    /// Returns the units of tea in the read model.
    async fn units(&self) -> i64 {
        let (rows, operator) = (&self.backend.read_model, self.backend.operator());
        let report = pipeline::report(rows, &operator, None).await.unwrap();
        report
            .hot_products
            .first()
            .map_or(0, |product| product.units)
    }
}

fn start(backend: &Backend, provider: &PaymentProvider, reads_till: bool) -> RunnerHandle {
    let mut builder = backend.runner().with_instance("worker-1");
    if reads_till {
        builder = builder.with_upcasters(old_till::upcasters());
    }
    let saga = PaymentSaga::new(backend.payments(), provider.clone());
    let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
    let builder = builder.projector(backend.read_model.projector());
    builder.listener_with(saga, policy).build().unwrap().start()
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn processors_are_listed_with_state_lag_and_instances() {
    let shop = Shop::open().await;
    shop.until("processors", "worker-1 running").await;
    let text = shop.show("processors").await;
    has(
        &text,
        &[
            "payments ",
            "sales ",
            "generation 1 live",
            "lag 0, 1 instance",
            "4 partitions",
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn parked_streams_are_listed_with_their_failure() {
    let shop = Shop::open().await;
    let text = shop.show("parked sales").await;
    let stream = "cart#till at version 2, known up to 3, since ";
    has(
        &text,
        &[
            stream,
            "waits for an operator",
            "poison after 1 attempt",
            "add an upcaster",
        ],
    );
    has(&text, &["1 stream of sales parked"]);
    has(
        &shop.show("parked payments").await,
        &["0 streams of payments parked"],
    );
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_listed_grouped_and_shown() {
    let shop = Shop::open().await;
    let all = shop.show("letters list").await;
    has(
        &all,
        &[
            "payments         payment#dear-1@1",
            "payment#dear-2@1",
            "sales            cart#till@2",
        ],
    );
    let of_saga = shop.show("letters list payments").await;
    has(
        &of_saga,
        &[
            "payment.PaymentRequested, permanent after 1 attempt",
            "2 dead letters",
        ],
    );
    assert!(!of_saga.contains("cart#till"), "{of_saga}");
    let groups = shop.show("letters groups payments").await;
    has(
        &groups,
        &[": 2 dead letters", "as payments payment#dear-", "1 group"],
    );
    let whole = shop.show("letters show payments payment#dear-1@1").await;
    has(
        &whole,
        &[
            "payment#dear-1@1, payment.PaymentRequested",
            "at most 10.00",
            "raise the limit",
        ],
    );
    has(
        &whole,
        &["1 attempt, first ", r#"payload      {"amount":"150.00"}"#],
    );
    // An event that waits after the one that failed has no letter.
    let (outcome, text) = shop
        .try_run("letters show sales cart#till@3", &[])
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::NotAll);
    has(&text, &["has no letter"]);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing() {
    let shop = Shop::open().await;
    let payments = shop.show("redrive payments all --dry-run").await;
    has(
        &payments,
        &["would handle 2 events in 0 parked streams and 2 dead letters"],
    );
    let sales = shop.show("redrive sales stream cart#till --dry-run").await;
    has(
        &sales,
        &["would handle 2 events in 1 parked stream and 0 dead letters"],
    );
    has(
        &shop.show("letters list payments").await,
        &["2 dead letters"],
    );
    has(&shop.show("audit").await, &["0 operations"]);
    let (outcome, text) = shop
        .try_run("redrive sales stream cart#cheap --dry-run", &[])
        .await
        .unwrap();
    has(&text, &["would handle 0 events"]);
    assert_eq!(outcome, Outcome::NotAll);
}

#[tokio::test(start_paused = true)]
async fn one_event_is_redriven_and_the_others_stay() {
    let shop = Shop::open().await;
    shop.provider.set_limit(None);
    let (outcome, text) = shop.act("redrive payments event payment#dear-2@1").await;
    assert_eq!(outcome, Outcome::Done);
    has(
        &text,
        &[
            "1 item with 1 event",
            "is done: 1 of 1 item done with 1 event",
        ],
    );
    assert!(matches!(
        shop.payment("dear-2").await,
        Payment::Settled { .. }
    ));
    assert!(matches!(
        shop.payment("dear-1").await,
        Payment::Pending { .. }
    ));
    has(
        &shop.show("letters list payments").await,
        &["payment#dear-1@1", "1 dead letter"],
    );
    has(
        &shop.show("jobs list payments").await,
        &["is done, of payment#dear-2 version 1", "by ann: ticket 17"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_is_redriven_by_its_fingerprint() {
    let shop = Shop::open().await;
    shop.provider.set_limit(None);
    let groups = shop.show("letters groups payments").await;
    let fingerprint = groups
        .strip_prefix("group ")
        .unwrap()
        .split(':')
        .next()
        .unwrap();
    let (outcome, text) = shop
        .act(&format!("redrive payments group {fingerprint} --rate 100"))
        .await;
    assert_eq!(outcome, Outcome::Done);
    has(&text, &["2 of 2 items done with 2 events; 0 failed again"]);
    has(
        &shop.show("letters list payments").await,
        &["0 dead letters"],
    );
    let unknown = format!("redrive payments group {}", "0".repeat(32));
    let (outcome, text) = shop.act(&unknown).await;
    assert_eq!(outcome, Outcome::NotAll);
    has(&text, &["nothing to redrive"]);
}

#[tokio::test(start_paused = true)]
async fn a_parked_stream_is_redriven_in_order_after_the_fix() {
    let mut shop = Shop::open().await;
    assert_eq!(shop.units().await, 1 + 50 + 60 + 1);
    shop.release().await;
    let (outcome, text) = shop.act("redrive sales stream cart#till").await;
    assert_eq!(outcome, Outcome::Done);
    has(&text, &["1 of 1 item done with 2 events"]);
    shop.until("parked sales", "0 streams of sales parked")
        .await;
    assert_eq!(shop.units().await, 1 + 50 + 60 + 1 + 2 + 4);
}

#[tokio::test(start_paused = true)]
async fn what_fails_again_is_told_and_stays() {
    let shop = Shop::open().await;
    let (outcome, text) = shop.act("redrive sales all").await;
    assert_eq!(outcome, Outcome::NotAll);
    has(&text, &["0 of 1 item done with 0 events; 1 failed again"]);
    has(
        &shop.show("parked sales").await,
        &["waits for an operator", "1 stream of sales parked"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_discarded_event_is_passed_over_and_what_waits_goes_on() {
    let shop = Shop::open().await;
    let (outcome, text) = shop.act("discard sales cart#till@2").await;
    assert_eq!(outcome, Outcome::Done);
    has(&text, &["discard of sales cart#till@2: asked for"]);
    shop.until("parked sales", "0 streams of sales parked")
        .await;
    assert_eq!(shop.units().await, 1 + 50 + 60 + 1 + 4);
    let again = shop.refused("discard sales cart#till@2", &BY).await;
    has(
        &again,
        &[
            "has set aside nothing at cart#till@2",
            "`shop letters list sales`",
        ],
    );
    let (outcome, _) = shop.act("discard payments payment#dear-1@1").await;
    assert_eq!(outcome, Outcome::Done);
    shop.until("letters list payments", "1 dead letter").await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_skipped_is_never_handled() {
    let shop = Shop::open().await;
    let (before, carts) = (shop.units().await, shop.backend.carts());
    assert_eq!(shop.act("pause sales").await.0, Outcome::Done);
    shop.until("processors", "worker-1 paused").await;
    for quantity in [7, 9] {
        let item = item(quantity);
        let add = CartCommand::AddItem {
            item,
            in_stock: 100,
        };
        carts.execute(&"late".into(), add).await.unwrap();
    }
    pipeline::publish_all(&shop.backend).await.unwrap();
    let (outcome, text) = shop.act("skip sales cart#late@1").await;
    assert_eq!(outcome, Outcome::Done);
    has(&text, &["skip of sales cart#late@1: asked for"]);
    assert_eq!(shop.act("resume sales").await.0, Outcome::Done);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.units().await, before + 9);

    let unknown = shop.refused("skip sales cart#late@9", &BY).await;
    has(&unknown, &["stream cart#late has no version 9"]);
    let record = shop.refused("skip sales GlobalEvents[0]@1", &BY).await;
    has(&record, &["name the event"]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_processor_handles_nothing_until_it_is_resumed() {
    let shop = Shop::open().await;
    let before = shop.units().await;
    assert_eq!(shop.act("pause sales").await.0, Outcome::Done);
    let (outcome, text) = shop.act("pause sales").await;
    assert_eq!(
        (outcome, text.trim()),
        (Outcome::NotAll, "sales was already paused")
    );
    shop.until("processors", "worker-1 paused").await;
    has(
        &shop.show("processors").await,
        &["paused by ann: ticket 17"],
    );
    let item = item(7);
    let add = CartCommand::AddItem {
        item,
        in_stock: 100,
    };
    shop.backend
        .carts()
        .execute(&"late".into(), add)
        .await
        .unwrap();
    pipeline::publish_all(&shop.backend).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.units().await, before);

    assert_eq!(shop.act("resume sales").await.1.trim(), "sales is resumed");
    assert_eq!(shop.act("resume sales").await.0, Outcome::NotAll);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.units().await, before + 7);
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_was_stopped_is_continued_or_aborted() {
    let shop = Shop::open().await;
    shop.provider.set_limit(None);
    let words = ["redrive", "payments", "all"];
    let command = operator::parse(&[&words[..], &BY[..]].concat()).unwrap();
    let (operator, stop, mut text) = (
        shop.backend.operator(),
        CancellationToken::new(),
        Vec::new(),
    );
    stop.cancel();
    let publisher = shop.backend.publisher();
    let outcome = Console::new(&operator, &publisher, &mut text)
        .run(&command, &stop)
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    let text = String::from_utf8(text).unwrap();
    let (_, line) = text.trim().rsplit_once("continue with: shop ").unwrap();
    assert_eq!(shop.try_run(line, &[]).await.unwrap().0, Outcome::Done);
    has(
        &shop.show("letters list payments").await,
        &["0 dead letters"],
    );
    let abort = line.replace("jobs run", "jobs abort");
    has(
        &shop.act(&abort).await.1,
        &["is done; 0 requests taken back"],
    );
}

#[tokio::test(start_paused = true)]
async fn breakers_are_listed_with_the_votes_that_count() {
    let shop = Shop::open().await;
    has(
        &shop.show("breakers").await,
        &["no process has shared a circuit breaker"],
    );
    let stop = CancellationToken::new();
    for (node, calls) in [("node-1", 5), ("node-2", 5), ("node-3", 0)] {
        let policy = BreakerPolicy::default();
        let control = shop.backend.control.clone();
        let member = DistributedBreaker::new("payments", node, policy, control).unwrap();
        let breaker = member.breaker();
        tokio::spawn(member.run(stop.clone()));
        for _ in 0..calls {
            let failed = breaker
                .call_when(async { Err::<(), _>("busy") }, |_| true)
                .await;
            assert!(failed.is_err());
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = shop.show("breakers").await;
    has(
        &text,
        &[
            "payments         open everywhere: 2 votes, 2 needed",
            "node-1 counts",
            "node-2 counts",
        ],
    );
    assert!(!text.contains("node-3"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_audit_says_who_did_what_and_why() {
    let shop = Shop::open().await;
    let _ = shop.act("pause sales").await;
    let _ = shop.act("resume sales").await;
    let text = shop.show("audit").await;
    has(
        &text,
        &[
            "ann pause sales, affected 1: ticket 17",
            "ann resume sales",
            "2 operations",
        ],
    );
    let text = shop.show("audit --day 2001-01-31T00:00:00Z").await;
    assert_eq!(text.trim(), "0 operations");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_target_is_an_error_that_says_what_to_do() {
    let shop = Shop::open().await;
    let unknown = shop.refused("parked nobody", &[]).await;
    has(
        &unknown,
        &[
            "there is no processor \"nobody\"",
            "known are payments, sales",
        ],
    );
    let nowhere = shop
        .refused("letters show payments payment#cheap@1", &[])
        .await;
    has(
        &nowhere,
        &["payments has set aside nothing at payment#cheap@1"],
    );
    let no_reason = shop
        .refused("pause sales", &["--who", "ann", "--why", " "])
        .await;
    has(&no_reason, &["the reason is empty"]);
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    let refused = |line: &str| -> BoxError {
        let words: Vec<_> = line.split(' ').collect();
        operator::parse(&words).unwrap_err()
    };
    let cases = BTreeMap::from([
        ("redrive sales all", "--why"),
        ("pause sales", "--why"),
        (
            "discard sales till --why x",
            "neither an event as in cart#c0001@3",
        ),
        ("redrive sales group xyz --why x", "fingerprint"),
        ("redrive sales all --why x --rate 0", "--rate"),
        ("audit --day yesterday", "--day"),
    ]);
    for (line, part) in cases {
        let error = refused(line).to_string();
        assert!(error.contains(part), "{line}: {part:?} is not in {error}");
    }
}

/// The model of `sales` was deleted, and another processor has built one.
#[tokio::test(start_paused = true)]
async fn without_a_name_the_report_is_of_a_model_that_has_rows() {
    let backend = Backend::embedded();
    let (carts, item) = (backend.carts(), item(7));
    let add = CartCommand::AddItem { item, in_stock: 9 };
    carts.execute(&"c1".into(), add).await.unwrap();
    pipeline::publish_all(&backend).await.unwrap();
    let runner = pipeline::sales_runner(&backend, Some("sales-2"), || ()).unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    let (rows, operator) = (&backend.read_model, backend.operator());
    for (name, orders) in [(None, 1), (Some("sales-2"), 1), (Some("sales"), 0)] {
        let report = pipeline::report(rows, &operator, name).await.unwrap();
        assert_eq!(report.orders, orders, "{name:?}");
    }
}
