//! A loan that follows a workflow.
//!
//! ```text
//! CREATED -> APPROVED -> DISBURSED -> PAID    -> SETTLED
//!        \                         \        \ /
//!         -> REJECTED               \        X
//!                                    \      / \
//!                                     -> ARREARS -> COLLECTIONS
//! ```
//! From PAID and from ARREARS a loan can go to SETTLED or to COLLECTIONS. REJECTED, SETTLED and
//! COLLECTIONS are final.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};

id!(
    /// The identity of a loan.
    pub LoanId
);

/// The events of a [`Loan`].
///
/// Amounts are in the smallest unit of the currency, such as cents.
#[derive(Clone, Debug, PartialEq, Eq, DomainEvent)]
#[event(aggregate = "loan")]
pub enum LoanEvent {
    /// A borrower asked for money.
    LoanCreated {
        /// The amount that the borrower asked for.
        requested: u64,
        /// The yearly interest in basis points (hundredths of a percent).
        interest_bps: u32,
    },
    /// The lender approved the loan.
    LoanApproved,
    /// The lender rejected the loan.
    LoanRejected {
        /// The reason that the lender gave.
        reason: String,
    },
    /// The lender paid out the money.
    LoanDisbursed,
    /// The borrower paid money back.
    LoanPaid {
        /// The amount that was paid back.
        amount: u64,
    },
    /// The borrower did not pay in time.
    LoanArrears,
    /// The borrower owes nothing anymore.
    LoanSettled,
    /// The lender handed the debt over to a collection agency.
    LoanCollections,
}

impl LoanEvent {
    /// Returns the status of a loan after this event.
    pub const fn leads_to(&self) -> LoanStatus {
        match self {
            Self::LoanCreated { .. } => LoanStatus::Created,
            Self::LoanApproved => LoanStatus::Approved,
            Self::LoanRejected { .. } => LoanStatus::Rejected,
            Self::LoanDisbursed => LoanStatus::Disbursed,
            Self::LoanPaid { .. } => LoanStatus::Paid,
            Self::LoanArrears => LoanStatus::Arrears,
            Self::LoanSettled => LoanStatus::Settled,
            Self::LoanCollections => LoanStatus::Collections,
        }
    }
}

/// The status of a loan in its workflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LoanStatus {
    /// The loan was not asked for yet.
    #[default]
    New,
    /// A borrower asked for the loan.
    Created,
    /// The lender approved the loan.
    Approved,
    /// The lender rejected the loan. This status is final.
    Rejected,
    /// The lender paid out the money.
    Disbursed,
    /// The borrower paid money back.
    Paid,
    /// The borrower did not pay in time.
    Arrears,
    /// The borrower owes nothing. This status is final.
    Settled,
    /// A collection agency collects the debt. This status is final.
    Collections,
}

/// The commands of a loan, each for one step of the workflow.
///
/// # Example
/// ```
/// use foldstream_testkit::{
///     Scenario,
///     domains::loan::{IllegalTransition, Loan, LoanCommand, LoanEvent, LoanStatus},
/// };
///
/// Scenario::<Loan>::given([LoanEvent::LoanCreated { requested: 100, interest_bps: 250 }])
///     .when(LoanCommand::Disburse)
///     .then_rejected(IllegalTransition {
///         from: LoanStatus::Created,
///         to: LoanStatus::Disbursed,
///     });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoanCommand {
    /// Asks the lender for money.
    Create {
        /// The amount that the borrower asks for.
        requested: u64,
        /// The yearly interest in basis points (hundredths of a percent).
        interest_bps: u32,
    },
    /// Approves the requested loan.
    Approve,
    /// Rejects the requested loan.
    Reject {
        /// The reason that the lender gives.
        reason: String,
    },
    /// Pays out the money.
    Disburse,
    /// Records that the borrower paid money back.
    RecordPayment {
        /// The amount that was paid back.
        amount: u64,
    },
    /// Records that the borrower did not pay in time.
    RecordArrears,
    /// Closes the loan because nothing is owed.
    Settle,
    /// Hands the debt over to a collection agency.
    SendToCollections,
}

impl LoanCommand {
    /// Returns the event that is recorded if the workflow allows the step.
    fn proposed(&self) -> LoanEvent {
        match self {
            Self::Create {
                requested,
                interest_bps,
            } => LoanEvent::LoanCreated {
                requested: *requested,
                interest_bps: *interest_bps,
            },
            Self::Approve => LoanEvent::LoanApproved,
            Self::Reject { reason } => LoanEvent::LoanRejected {
                reason: reason.clone(),
            },
            Self::Disburse => LoanEvent::LoanDisbursed,
            Self::RecordPayment { amount } => LoanEvent::LoanPaid { amount: *amount },
            Self::RecordArrears => LoanEvent::LoanArrears,
            Self::Settle => LoanEvent::LoanSettled,
            Self::SendToCollections => LoanEvent::LoanCollections,
        }
    }
}

/// The error returned for a step that the workflow does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a loan cannot go from {from:?} to {to:?}")]
pub struct IllegalTransition {
    /// The status of the loan.
    pub from: LoanStatus,
    /// The status to which the command leads.
    pub to: LoanStatus,
}

/// The state of a loan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    status: LoanStatus,
    requested: u64,
    interest_bps: u32,
    paid: u64,
}

impl Loan {
    /// Returns the loan's status in the workflow.
    pub const fn status(&self) -> LoanStatus {
        self.status
    }
    /// Returns the amount that the borrower asked for.
    pub const fn requested(&self) -> u64 {
        self.requested
    }
    /// Returns the yearly interest in basis points (hundredths of a percent).
    pub const fn interest_bps(&self) -> u32 {
        self.interest_bps
    }
    /// Returns the amount that was paid back so far.
    pub const fn paid(&self) -> u64 {
        self.paid
    }
}

impl Aggregate for Loan {
    type Id = LoanId;
    type Event = LoanEvent;

    fn evolve(&mut self, event: &LoanEvent) {
        self.status = event.leads_to();
        match event {
            LoanEvent::LoanCreated {
                requested,
                interest_bps,
            } => (self.requested, self.interest_bps) = (*requested, *interest_bps),
            LoanEvent::LoanPaid { amount } => self.paid = self.paid.saturating_add(*amount),
            _ => {}
        }
    }
}

impl Decide<LoanCommand> for Loan {
    type Error = IllegalTransition;

    fn decide(&self, command: &LoanCommand, _: &Context) -> Decision<Self, IllegalTransition> {
        use LoanStatus::{
            Approved, Arrears, Collections, Created, Disbursed, New, Paid, Rejected, Settled,
        };
        let proposed = command.proposed();
        match (self.status, proposed.leads_to()) {
            (New, Created)
            | (Created, Approved | Rejected)
            | (Approved, Disbursed)
            | (Disbursed, Paid | Arrears)
            | (Paid | Arrears, Settled | Collections) => Ok(vec![proposed]),
            (from, to) => Err(IllegalTransition { from, to }),
        }
    }
}

impl Snapshot for Loan {
    const STATE_VERSION: u32 = 1;
}
