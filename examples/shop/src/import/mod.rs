//! Imports the invoices of an old system from a CSV file. Each invoice becomes one command on one
//! cart.
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

/// The number of invoices that are written concurrently. They are separate streams, so their order
/// does not matter.
const CONCURRENT: usize = 32;

/// The result of an import.
#[derive(Debug, Default)]
pub struct Imported {
    /// Invoices that this import has stored as orders.
    pub new: usize,
    /// Invoices that were orders before this import.
    pub known: usize,
    /// Cancellations among the new and the known invoices.
    pub cancellations: usize,
    /// Lines of the new and the known invoices.
    pub lines: usize,
    /// Lines that were refused because they are malformed.
    pub refused: u64,
    /// Invoices that the event store refused, each with its error.
    pub failed: Vec<(CartId, ImportError)>,
    /// The totals that the projections must reach for the new and the known invoices.
    pub tally: Tally,
    /// True if the import was interrupted before the end of the file.
    pub is_interrupted: bool,
}

/// The error of a whole import or of one invoice.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The event store does not accept the invoice.
    #[error("invoice {} cannot be stored", id.as_str())]
    Store {
        /// The id of the invoice.
        id: CartId,
        /// The error of the repository.
        #[source]
        source: ExecuteError<Infallible>,
    },
    /// The sums of the file cannot be held exactly.
    #[error("the file's totals cannot be checked")]
    Tally(#[from] MoneyError),
}

impl ImportError {
    /// Returns true if only this invoice is affected, and false if the next one would fail as well.
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

/// Imports every invoice until the end of the file or until `shutdown` is ready.
///
/// It passes the number of lines of each finished invoice to `progress`.
///
/// # Errors
/// [`ImportError`] if the file or the event store cannot be used. Invoices imported before the
/// error stay; another import continues after them.
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

/// Executes the command of one invoice, and retries while its outcome is unknown.
///
/// A retry is safe even if the answer was lost and the order was stored: the cart is not empty
/// then, and the command yields no events.
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
