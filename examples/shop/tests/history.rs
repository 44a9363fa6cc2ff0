//! The history of a cart and a payment, as `shop history` shows it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use clap::Parser;
use foldstream::{Metadata, Timestamp, chain};
use shop::{
    backend::Backend,
    cart::{CartCommand, CartItem},
    chaos::old_till,
    history::{self, HistoryArgs},
    money::Money,
    operator::Outcome,
    payment::PaymentCommand,
};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: HistoryArgs,
}

fn item(stock_code: &str, quantity: i64) -> CartItem {
    CartItem {
        stock_code: stock_code.into(),
        description: String::new(),
        quantity,
        unit_price: Money::from_cents(300),
        invoiced_at: Timestamp::from_micros(0),
        customer: None,
        country: "France".into(),
    }
}

fn add(stock_code: &str, quantity: i64) -> CartCommand {
    CartCommand::AddItem {
        item: item(stock_code, quantity),
        in_stock: 100,
    }
}

/// Runs a command line, with its words separated by spaces. Returns the text up to its end.
async fn try_run(backend: &Backend, line: &str) -> (Result<Outcome, String>, String) {
    let words = std::iter::once("history").chain(line.split(' '));
    let args = Line::try_parse_from(words).unwrap().args;
    let mut text = Vec::new();
    let outcome = history::show(backend, &args, &mut text).await;
    let outcome = outcome.map_err(|error| chain(&error));
    (outcome, String::from_utf8(text).unwrap())
}

/// Returns what is shown without the times, which are those of the test.
async fn show(backend: &Backend, line: &str) -> Vec<String> {
    let (outcome, text) = try_run(backend, line).await;
    assert_eq!(outcome, Ok(Outcome::Done), "{text}");
    let is_time = |word: &&str| word.ends_with('Z') && word.contains('T');
    let lines = text.lines().map(|line| {
        let words = line.split(' ').filter(|word| !is_time(word));
        words.collect::<Vec<_>>().join(" ")
    });
    lines.collect()
}

/// A shop in which a customer has filled a cart, taken something out, and ordered.
async fn given_an_order() -> Backend {
    let backend = Backend::embedded();
    let (carts, id) = (backend.carts(), "c1".into());
    let metadata = Metadata::new().with_actor("ann").with_command_id("click-1");
    carts
        .execute_with(&id, add("tea", 2), metadata)
        .await
        .unwrap();
    carts.execute(&id, add("cup", 1)).await.unwrap();
    let stock_code = "tea".into();
    let remove = CartCommand::RemoveItem { stock_code };
    carts.execute(&id, remove).await.unwrap();
    carts.execute(&id, CartCommand::CheckOut).await.unwrap();
    backend
}

#[tokio::test]
async fn each_event_of_a_cart_is_shown_with_what_it_changed() {
    let backend = given_an_order().await;
    let json = |code: &str, quantity| serde_json::to_value(item(code, quantity)).unwrap();
    let (tea, cup) = (json("tea", 2), json("cup", 1));
    assert_eq!(
        show(&backend, "cart#c1").await,
        [
            "1 CartItemAdded, by ann, command click-1".to_owned(),
            "  /is_known false -> true".into(),
            format!("  + /items/0 {tea}"),
            "2 CartItemAdded".into(),
            format!("  + /items/1 {cup}"),
            "3 CartItemRemoved".into(),
            format!("  - /items/0 {tea}"),
            "4 CartCheckedOut".into(),
            "  /is_checked_out false -> true".into(),
            "4 versions of cart#c1".into(),
        ]
    );
}

#[tokio::test]
async fn a_range_is_shown_alone() {
    let backend = given_an_order().await;
    let shown = show(&backend, "cart#c1 --from 4").await;
    assert_eq!(
        shown,
        [
            "4 CartCheckedOut",
            "  /is_checked_out false -> true",
            "1 version of cart#c1"
        ]
    );
    let shown = show(&backend, "cart#c1 --from 2 --to 3").await;
    assert_eq!(shown.len(), 5, "{shown:?}");
}

#[tokio::test]
async fn a_payment_is_shown_as_the_kinds_of_its_state() {
    let backend = given_an_order().await;
    let payments = backend.payments();
    let amount = Money::from_cents(300);
    payments
        .execute(&"c1".into(), PaymentCommand::Request { amount })
        .await
        .unwrap();
    let receipt = "r-1".into();
    payments
        .execute(&"c1".into(), PaymentCommand::Settle { receipt })
        .await
        .unwrap();
    assert_eq!(
        show(&backend, "payment#c1").await,
        [
            "1 PaymentRequested",
            r#"  state "NotRequested" -> {"Pending":{"amount":"3.00"}}"#,
            "2 PaymentSettled",
            r#"  - /Pending {"amount":"3.00"}"#,
            r#"  + /Settled {"receipt":"r-1"}"#,
            "2 versions of payment#c1",
        ]
    );
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    let backend = given_an_order().await;
    for (line, text) in [
        ("cart#nobody", "there is no stream cart#nobody\n"),
        ("cart#c1 --from 9", "0 versions of cart#c1\n"),
    ] {
        let (outcome, shown) = try_run(&backend, line).await;
        assert_eq!((outcome, &*shown), (Ok(Outcome::NotAll), text));
    }
    let (outcome, _) = try_run(&backend, "order#c1").await;
    assert!(
        outcome
            .unwrap_err()
            .contains("neither a cart nor a payment")
    );
}

#[tokio::test]
async fn an_event_that_this_release_cannot_read_is_named_after_those_before_it() {
    let (backend, id) = (Backend::embedded(), "till".into());
    backend.carts().execute(&id, add("tea", 1)).await.unwrap();
    old_till::ring_up(&backend, &id, &item("tea", 2))
        .await
        .unwrap();
    let (outcome, text) = try_run(&backend, "cart#till").await;
    let error = outcome.unwrap_err();
    assert!(
        error.contains("event 2 of cart#till cannot be read"),
        "{error}"
    );
    assert!(error.contains("add an upcaster"), "{error}");
    assert!(
        text.starts_with("1 ") && !text.contains("versions of"),
        "{text}"
    );
}
