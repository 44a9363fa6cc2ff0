//! The audit: an entry for every operation.
use super::{OperateError, Operator};
use crate::{
    Timestamp,
    control::{AuditRow, PutIf, audit_date},
};

/// The operator who acts, and why. Both stand in the audit.
///
/// # Example
/// ```
/// use foldstream::operate::Reason;
/// let reason = Reason::new("ann", "ticket 17: the card service is back")?;
/// assert_eq!(reason.who(), "ann");
/// assert!(Reason::new("ann", " ").is_err());
/// # Ok::<(), foldstream::operate::OperateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    who: String,
    why: String,
}

impl Reason {
    /// Creates a reason from the name of a person or program, and a text for later readers.
    ///
    /// # Errors
    /// [`OperateError::NoReason`] if one of them is empty.
    pub fn new(who: impl Into<String>, why: impl Into<String>) -> Result<Self, OperateError> {
        let (who, why) = (who.into(), why.into());
        for (text, missing) in [(&who, "the name"), (&why, "the reason")] {
            if text.trim().is_empty() {
                return Err(OperateError::NoReason { missing });
            }
        }
        Ok(Self { who, why })
    }
    /// Returns the name of the operator.
    pub fn who(&self) -> &str {
        &self.who
    }
    /// Returns the reason for the operation.
    pub fn why(&self) -> &str {
        &self.why
    }
}

/// An entry of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// The name of the operator.
    pub who: String,
    /// The time at which the operation began.
    pub at: Timestamp,
    /// The name of the operation, such as `redrive`.
    pub action: String,
    /// The target of the operation: the processor, and what of it.
    pub target: String,
    /// The reason that the operator has given.
    pub why: String,
    /// The number of streams, letters or processors that the operation affected. `None` if the
    /// operation has failed, is still running, or has lost its process.
    pub affected: Option<u64>,
}

/// A page of the audit of one day, the newest entry first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditPage {
    /// The entries of the page. The page may be empty before the end of the list.
    pub entries: Vec<AuditEntry>,
    /// The value for `after` of the next call; `None` on the last page.
    pub next: Option<String>,
}

impl Operator {
    /// Returns one page of the entries of the day, in UTC, in which `day` lies. Entries are kept
    /// for 400 days.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn audit(
        &self,
        day: Timestamp,
        after: Option<String>,
    ) -> Result<AuditPage, OperateError> {
        let page = self.rows.audit_page(&audit_date(day), after).await?;
        let entries = page.rows.into_iter().map(|(_, row)| {
            let row = row.value;
            AuditEntry {
                who: row.who,
                at: row.at,
                action: row.action,
                target: row.target,
                why: row.why,
                affected: row.affected,
            }
        });
        Ok(AuditPage {
            entries: entries.collect(),
            next: page.next,
        })
    }

    /// Carries out an operation between the two writes of its entry. `act` returns its answer and
    /// how many it has affected.
    pub(super) async fn audited<T>(
        &self,
        action: &str,
        target: String,
        reason: &Reason,
        act: impl Future<Output = Result<(T, u64), OperateError>>,
    ) -> Result<T, OperateError> {
        let row = AuditRow {
            who: reason.who.clone(),
            at: self.clock.now(),
            action: action.into(),
            target,
            why: reason.why.clone(),
            affected: None,
        };
        let (key, begun) = self.rows.audit_put(row).await?;
        let (answer, affected) = act.await?;
        let row = AuditRow {
            affected: Some(affected),
            ..begun.value
        };
        // The operation is done, and its entry exists. An entry that cannot be completed says that
        // the number is not known.
        match self.rows.audit_complete(&key, row, begun.revision).await {
            Ok(PutIf::Written(_)) => {}
            Ok(PutIf::Conflict(_)) => tracing::error!(%key, "the audit entry was changed"),
            Err(error) => {
                let error = crate::chain(&error);
                tracing::error!(%key, error, affected, "the audit entry stays without a number");
            }
        }
        Ok(answer)
    }
}
