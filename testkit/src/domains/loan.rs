//! A loan and its workflow:
//!
//! ```text
//! CREATED -> APPROVED -> DISBURSED -> PAID    -> SETTLED
//!        \                         \        \ /
//!         -> REJECTED               \        X
//!                                    \      / \
//!                                     -> ARREARS -> COLLECTIONS
//! ```
//! From PAID and from ARREARS both ends can be reached. REJECTED, SETTLED and COLLECTIONS are ends.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};

id!(
    /// Names a loan.
    pub LoanId
);

/// The events of a loan.
#[derive(Clone, Debug, PartialEq, Eq, DomainEvent)]
#[event(aggregate = "loan")]
pub enum LoanEvent {
    /// Somebody asked for money.
    LoanCreated {
        /// How much.
        requested: u64,
        /// Yearly interest in hundredths of a percent.
        interest_bps: u32,
    },
    /// The lender agreed.
    LoanApproved,
    /// The lender did not agree.
    LoanRejected {
        /// Why.
        reason: String,
    },
    /// The money was paid out.
    LoanDisbursed,
    /// Money came back.
    LoanPaid {
        /// How much.
        amount: u64,
    },
    /// Money did not come back in time.
    LoanArrears,
    /// Nothing is owed any more.
    LoanSettled,
    /// Others collect what is owed.
    LoanCollections,
}

impl LoanEvent {
    /// The status that follows.
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
    /// Not asked for yet.
    #[default]
    New,
    /// Asked for.
    Created,
    /// The lender agreed.
    Approved,
    /// The lender did not agree: an end.
    Rejected,
    /// Paid out.
    Disbursed,
    /// Money came back.
    Paid,
    /// Money did not come back in time.
    Arrears,
    /// Nothing is owed: an end.
    Settled,
    /// Others collect it: an end.
    Collections,
}

/// A wish for the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoanCommand {
    /// Ask for money.
    Create {
        /// How much.
        requested: u64,
        /// Yearly interest in hundredths of a percent.
        interest_bps: u32,
    },
    /// Agree.
    Approve,
    /// Do not agree.
    Reject {
        /// Why.
        reason: String,
    },
    /// Pay out.
    Disburse,
    /// Record that money came back.
    RecordPayment {
        /// How much.
        amount: u64,
    },
    /// Record that none came back in time.
    RecordArrears,
    /// Close it: nothing is owed.
    Settle,
    /// Hand it over to others.
    SendToCollections,
}

impl LoanCommand {
    /// The fact that is wished for.
    fn wish(&self) -> LoanEvent {
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

/// A step that the workflow does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a loan cannot go from {from:?} to {to:?}")]
pub struct IllegalTransition {
    /// The status of the loan.
    pub from: LoanStatus,
    /// The status that was asked for.
    pub to: LoanStatus,
}

/// One loan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    status: LoanStatus,
    requested: u64,
    interest_bps: u32,
    paid: u64,
}

impl Loan {
    /// Returns the status in the workflow.
    pub const fn status(&self) -> LoanStatus {
        self.status
    }
    /// Returns the amount that was asked for.
    pub const fn requested(&self) -> u64 {
        self.requested
    }
    /// Yearly interest in hundredths of a percent.
    pub const fn interest_bps(&self) -> u32 {
        self.interest_bps
    }
    /// Returns the amount that was paid back.
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
        let wish = command.wish();
        match (self.status, wish.leads_to()) {
            (New, Created)
            | (Created, Approved | Rejected)
            | (Approved, Disbursed)
            | (Disbursed, Paid | Arrears)
            | (Paid | Arrears, Settled | Collections) => Ok(vec![wish]),
            (from, to) => Err(IllegalTransition { from, to }),
        }
    }
}

impl Snapshot for Loan {
    const STATE_VERSION: u32 = 1;
}
