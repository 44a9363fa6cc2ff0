//! Discards of letters whose operator, or owner, dies between two rows.
use super::super::harness::partition;
use super::views::*;
use crate::support::stream;
use foldstream::{
    Version,
    operate::{DiscardState, LetterAddress, LetterKey, Operator, Reason},
    runner::{DeliveryLevel, FailureAction, ProcessorPolicy},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};

/// An operator of the public API, whose calls may fail.
fn operator(shop: &Shop, faults: &Faults) -> Operator {
    Operator::new(faults.control_store(shop.world.control.clone()))
}

fn letter_of(id: &str, version: u64) -> LetterAddress {
    let key = LetterKey::event(stream(id), Version::new(version));
    LetterAddress::new("views", 1, partition(0), key)
}

/// A projector that goes on without the events that fail, with a letter of one of them.
async fn with_letter(level: DeliveryLevel) -> (Shop, impl Fn() -> ProcessorPolicy) {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "a"]).await;
    let giving_up = move || {
        let policy = policy().with_on_failure(|_| FailureAction::DeadLetter);
        policy.with_level(level)
    };
    let running = shop.start_as(shop.views.clone(), giving_up());
    seconds(15).await;
    running.stop().await;
    shop.views.fix();
    assert_eq!(shop.operator.letters("a").await, [2]);
    (shop, giving_up)
}

#[tokio::test(start_paused = true)]
async fn a_discard_whose_operator_died_on_the_way_is_finished_by_the_owner() {
    // The owner finds it when it takes the partition up, or when it reads the rows again.
    for is_running in [false, true] {
        let (mut deaths, mut left_half_done) = (0, 0);
        for point in 1.. {
            for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                let (shop, giving_up) = with_letter(DeliveryLevel::AtLeastOnce).await;
                let start = || shop.start_as(shop.views.clone(), giving_up());
                let mut running = None;
                if is_running {
                    running = Some(start());
                    seconds(5).await;
                }
                let faults = Faults::script([fault.on(Op::Put).at(point)]);
                let (asked, reason) = (operator(&shop, &faults), Reason::new("ann", "x").unwrap());
                let letter = letter_of("a", 2);
                let _ = faults.run(asked.discard(&letter, &reason)).await;
                deaths += u64::from(faults.is_crashed());
                let is_asked = shop.operator.discarded("a", 2).await.is_some();
                let asks = shop.operator.all("ask").await;
                left_half_done += u32::from(is_asked && asks.is_empty());
                let running = running.unwrap_or_else(start);
                seconds(400).await;
                // A redrive of all finds nothing of it.
                let waits = shop.operator.letters("a").await;
                assert_eq!(waits, if is_asked { vec![] } else { vec![2] }, "{point}");
                let state = operator(&shop, &Faults::none());
                let state = state.discard_state(&letter).await.unwrap();
                assert_eq!(state, is_asked.then_some(DiscardState::Passed), "{point}");
                assert_eq!(shop.views.of("a"), [1, 3]);
                running.stop().await;
            }
            if deaths < 2 * point {
                break;
            }
        }
        assert!(
            deaths >= 8 && left_half_done >= 2,
            "{deaths} {left_half_done}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_dies_while_it_finishes_a_discard_leaves_it_to_the_next() {
    let mut deaths = 0;
    for point in 1.. {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            let (shop, giving_up) = with_letter(DeliveryLevel::AtLeastOnce).await;
            shop.operator.ask_discard("a", 2).await;
            let of_letters = |call: &Call<'_>| {
                let partition = match call {
                    Call::Put { row, .. } => &row.key.partition,
                    Call::Delete { key, .. } => &key.partition,
                    _ => return false,
                };
                ["discarded/", "dlq/"]
                    .iter()
                    .any(|kind| partition.starts_with(kind))
            };
            let dies = fault
                .on([Op::Put, Op::Delete])
                .matching(of_letters)
                .at(point);
            let faults = Faults::script([dies]);
            let running = shop.start_with(&faults, shop.views.clone(), giving_up());
            seconds(20).await;
            running.crash().await;
            deaths += u64::from(faults.is_crashed());
            // The letter is never gone before the row says that the version is passed over.
            if shop.operator.letters("a").await.is_empty() {
                let state = shop.operator.discarded("a", 2).await;
                let archived = shop.operator.archived("a", 2).await;
                assert_eq!(state.or(archived).as_deref(), Some("passed"));
            }
            let running = shop.start_as(shop.views.clone(), giving_up());
            seconds(20).await;
            assert_eq!(shop.operator.letters("a").await, [0; 0]);
            assert_eq!(shop.views.of("a"), [1, 3]);
            running.stop().await;
        }
        if deaths < 2 * point {
            break;
        }
    }
    assert!(deaths >= 4, "{deaths} deaths");
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_is_discarded_is_not_handled_by_a_redrive_that_was_asked_before() {
    let (shop, giving_up) = with_letter(DeliveryLevel::AtLeastOnce).await;
    // The request for the letter is there, so that the operator's own has no place.
    shop.operator.ask("a", 2, "redrive").await;
    shop.operator.discard("a", 2).await;
    let running = shop.start_as(shop.views.clone(), giving_up());
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 3]);
    shop.assert_at_rest().await;
    let state = shop.operator.discarded("a", 2).await;
    assert_eq!(state.as_deref(), Some("passed"));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_discard_of_a_letter_below_the_stored_position_is_passed_and_not_handled_before() {
    for has_request in [true, false] {
        // The position has passed the event, since it was given up.
        let (shop, giving_up) = with_letter(DeliveryLevel::Deduplicated).await;
        assert_eq!(shop.operator.position("a").await, Some(3));
        shop.operator.ask_discard("a", 2).await;
        if has_request {
            shop.operator.ask("a", 2, "discard").await;
        }
        let running = shop.start_as(shop.views.clone(), giving_up());
        seconds(20).await;
        assert_eq!(shop.operator.letters("a").await, [0; 0]);
        let state = shop.operator.discarded("a", 2).await;
        let archived = shop.operator.archived("a", 2).await;
        assert_eq!(state.or(archived).as_deref(), Some("passed"));
        running.stop().await;
    }
}
