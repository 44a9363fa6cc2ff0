//! The laws and scenarios of the loan.
use foldstream::Repository;
use foldstream_testkit::{
    InMemoryEventStore, Scenario,
    domains::loan::{
        IllegalTransition, Loan,
        LoanCommand::{
            self, Approve, Create, Disburse, RecordArrears, RecordPayment, Reject,
            SendToCollections, Settle,
        },
        LoanEvent::{
            self, LoanApproved, LoanArrears, LoanCollections, LoanCreated, LoanDisbursed, LoanPaid,
            LoanRejected, LoanSettled,
        },
        LoanId,
        LoanStatus::{
            self, Approved, Arrears, Collections, Created, Disbursed, New, Paid, Rejected, Settled,
        },
    },
    laws::Laws,
};

const CREATE: LoanCommand = Create {
    requested: 500,
    interest_bps: 450,
};
const CREATED: LoanEvent = LoanCreated {
    requested: 500,
    interest_bps: 450,
};

/// Lists every command, the event that it leads to, and the status after that event.
fn all() -> Vec<(LoanCommand, LoanEvent, LoanStatus)> {
    let reject = Reject {
        reason: "no".into(),
    };
    let rejected = LoanRejected {
        reason: "no".into(),
    };
    vec![
        (CREATE, CREATED, Created),
        (Approve, LoanApproved, Approved),
        (reject, rejected, Rejected),
        (Disburse, LoanDisbursed, Disbursed),
        (
            RecordPayment { amount: 100 },
            LoanPaid { amount: 100 },
            Paid,
        ),
        (RecordArrears, LoanArrears, Arrears),
        (Settle, LoanSettled, Settled),
        (SendToCollections, LoanCollections, Collections),
    ]
}

/// Returns true if the workflow's diagram has this transition. It is written a second time on
/// purpose.
fn is_drawn(from: LoanStatus, to: LoanStatus) -> bool {
    let drawn: &[LoanStatus] = match from {
        New => &[Created],
        Created => &[Approved, Rejected],
        Approved => &[Disbursed],
        Disbursed => &[Paid, Arrears],
        Paid | Arrears => &[Settled, Collections],
        Rejected | Settled | Collections => &[],
    };
    drawn.contains(&to)
}

#[test]
fn every_illegal_transition_is_rejected_over_all_sequences_up_to_length_8() {
    let commands = all().into_iter().map(|(command, ..)| command);
    let checked = Laws::<Loan>::exhaustive(commands, 8)
        .with_snapshots()
        .with_duplicates()
        .with_rule(
            "the workflow is the drawn one",
            |loan: &Loan, command, led_to| {
                let mut all = all().into_iter();
                let Some((_, event, to)) = all.find(|(known, ..)| known == command) else {
                    return false;
                };
                let from = loan.status();
                match led_to {
                    Ok(events) => is_drawn(from, to) && *events == [event],
                    Err(illegal) => {
                        !is_drawn(from, to) && *illegal == IllegalTransition { from, to }
                    }
                }
            },
        )
        .with_invariant("what was asked for stays", |loan| {
            let asked = if loan.status() == New {
                (0, 0)
            } else {
                (500, 450)
            };
            (loan.requested(), loan.interest_bps()) == asked
        })
        .never("a step that is not drawn", |history| {
            let statuses = [New]
                .into_iter()
                .chain(history.iter().map(LoanEvent::leads_to));
            let steps = statuses.clone().zip(statuses.skip(1));
            steps.into_iter().any(|(from, to)| !is_drawn(from, to))
        })
        .check();
    // New, Created, Approved, Rejected, Disbursed, Paid, Arrears, and two ends for each of the last
    // two.
    assert_eq!(
        (checked.histories(), checked.longest()),
        (11, 5),
        "{checked}"
    );
    // Each status is tried with all eight commands.
    assert_eq!(checked.accepted() + checked.rejected(), 11 * 8, "{checked}");
    assert_eq!(checked.accepted(), 10, "{checked}");
}

#[test]
fn a_loan_that_is_paid_back_is_settled() {
    Scenario::<Loan>::given([CREATED, LoanApproved])
        .when(Disburse)
        .then([LoanDisbursed])
        .when(RecordPayment { amount: 520 })
        .then([LoanPaid { amount: 520 }])
        .then_state(|loan| assert_eq!((loan.paid(), loan.status()), (520, Paid)))
        .when(Settle)
        .then([LoanSettled]);
}

#[test]
fn a_loan_is_approved_once() {
    Scenario::<Loan>::given([CREATED, LoanApproved])
        .when(Approve)
        .then_rejected(IllegalTransition {
            from: Approved,
            to: Approved,
        })
        .then_rejected_with(|illegal| {
            let text = "a loan cannot go from Approved to Approved";
            assert_eq!(illegal.to_string(), text);
        });
}

#[test]
fn payments_cannot_overflow() {
    let paid = LoanPaid { amount: u64::MAX };
    Scenario::<Loan>::given([CREATED, LoanApproved, LoanDisbursed, paid.clone(), paid])
        .when(Settle)
        .then([LoanSettled])
        .then_state(|loan| assert_eq!(loan.paid(), u64::MAX));
}

#[tokio::test]
async fn a_stored_loan_is_hydrated_and_its_next_fact_committed_at_its_version() {
    let loans = Repository::<Loan>::new(InMemoryEventStore::new());
    let id = LoanId::from("l-1");
    for command in [CREATE, Approve] {
        loans.execute(&id, command).await.unwrap();
    }
    let loan = loans.load(&id).await.unwrap();
    assert_eq!((loan.version().get(), loan.state().status()), (2, Approved));
    let done = loans
        .append(&id, loan.head(), &[LoanDisbursed])
        .await
        .unwrap();
    assert_eq!(done.version().get(), 3);
    // The loaded head is behind the tail now.
    assert!(
        loans
            .append(&id, loan.head(), &[LoanDisbursed])
            .await
            .is_err()
    );
}
