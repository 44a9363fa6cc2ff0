//! Imports the invoices of an old system from a CSV file: one invoice is one command on one cart.
mod invoices;
mod line;
mod records;

pub use invoices::{FileError, Invoice, InvoiceFile, RefusedLine};
pub use line::{COLUMNS, LineError};

use crate::{
    cart::{Cart, CartEvent, CartId, ImportInvoice},
    money::MoneyError,
    tally::Tally,
};
use foldstream::{
    ExecuteError, Repository, RetryPolicy, chain, ports::EventStoreError, resilience::Retryable,
};
use futures::{StreamExt, stream};
use std::{convert::Infallible, future::Future};

/// Invoices that are written at the same time. They are different streams, so their order does not matter.
const CONCURRENT: usize = 32;

/// What an import did.
#[derive(Debug, Default)]
pub struct Imported {
    /// Invoices that are orders now and were not before.
    pub new: usize,
    /// Invoices that were orders already.
    pub known: usize,
    /// How many of both are cancellations.
    pub cancellations: usize,
    /// Lines of both.
    pub lines: usize,
    /// Lines that are not, since they are malformed.
    pub refused: u64,
    /// Invoices that the event store does not take, and why; they are not imported.
    pub failed: Vec<(CartId, ImportError)>,
    /// What the projections must come to say of both.
    pub tally: Tally,
    /// Whether the import was told to stop before the end of the file.
    pub is_interrupted: bool,
}

/// Why an import ended, or why one invoice was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The event store.
    #[error("invoice {} cannot be stored", id.as_str())]
    Store {
        /// The invoice.
        id: CartId,
        /// Why.
        #[source]
        source: ExecuteError<Infallible>,
    },
    /// The sums of the file cannot be held exactly.
    #[error("the file's totals cannot be checked")]
    Tally(#[from] MoneyError),
}

impl ImportError {
    /// Whether only this invoice is affected. Otherwise the next one would fail as well.
    fn is_about_one_invoice(&self) -> bool {
        let Self::Store {
            source: ExecuteError::Store(error),
            ..
        } = self
        else {
            return false;
        };
        matches!(
            error,
            EventStoreError::TooLarge { .. } | EventStoreError::Invalid { .. }
        )
    }
}

/// Imports every invoice until the end of the file or until `shutdown` is ready; `progress` is told of each one's lines.
///
/// # Errors
/// [`ImportError`]. What was imported stays; importing again goes on behind it.
pub async fn import(
    carts: &Repository<Cart>,
    file: &InvoiceFile,
    progress: impl Fn(usize),
    shutdown: impl Future<Output = ()>,
) -> Result<Imported, ImportError> {
    let mut imported = Imported {
        refused: file.refused(),
        ..Imported::default()
    };
    let invoices = stream::iter(file.read()?).take_until(shutdown);
    let mut results = Box::pin(
        invoices
            .map(|invoice| import_one(carts, invoice))
            .buffer_unordered(CONCURRENT),
    );
    while let Some(result) = results.next().await {
        let (invoice, is_new) = match result {
            Ok(done) => done,
            Err(ImportError::Store { id, source }) => {
                let error = ImportError::Store {
                    id: id.clone(),
                    source,
                };
                if !error.is_about_one_invoice() {
                    return Err(error);
                }
                imported.failed.push((id, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        progress(invoice.lines.len());
        imported.count(invoice, is_new)?;
    }
    imported.is_interrupted =
        imported.new + imported.known + imported.failed.len() < file.invoices();
    Ok(imported)
}

impl Imported {
    fn count(&mut self, invoice: Invoice, is_new: bool) -> Result<(), MoneyError> {
        if is_new {
            self.new += 1;
        } else {
            self.known += 1;
        }
        self.cancellations += usize::from(invoice.is_cancellation());
        self.lines += invoice.lines.len();
        let events: Vec<_> = invoice
            .lines
            .into_iter()
            .map(CartEvent::CartItemAdded)
            .collect();
        self.tally.add(&invoice.id, &events)
    }
}

/// Executes one invoice's command until it is known what became of it.
///
/// Sending it again is safe even if an answer was lost and the order was stored after all: the cart is not empty then,
/// and the command yields nothing.
async fn import_one(
    carts: &Repository<Cart>,
    invoice: Result<Invoice, FileError>,
) -> Result<(Invoice, bool), ImportError> {
    let invoice = invoice?;
    let Invoice { id, lines } = &invoice;
    let execute = || {
        let lines = lines.clone();
        carts.execute(id, ImportInvoice { lines })
    };
    let executed = execute
        .retry(RetryPolicy::default())
        .when(ExecuteError::is_transient)
        .notify(|error, _, _| tracing::info!(error = chain(error), "once more"));
    match executed.run().await {
        Ok(done) => Ok((invoice, !done.events().is_empty())),
        Err(source) => Err(ImportError::Store {
            id: invoice.id,
            source,
        }),
    }
}
