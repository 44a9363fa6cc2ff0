//! A day of the shop: its customers, its worker processes, and what is known of them.
use super::old_till;
use crate::{
    backend::Backend,
    cart::{Cart, CartCommand, CartEvent, CartId},
    money::Money,
    operator::{self, Console, Outcome},
    pipeline::active_model,
    provider::PaymentProvider,
    read_model::OrderRow,
    report::Report,
    saga::PaymentSaga,
    tally::Tally,
};
use foldstream::{
    BoxError, ExecuteError, Repository,
    breaker::{BreakerPolicy, CircuitBreaker},
    publisher::{PollConfig, PollError, PollReport},
    runner::{ProcessorPolicy, Projector, RunnerHandle, Start},
};
use std::{
    collections::BTreeMap,
    io::Write,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The longest time that the story waits for one of its turns.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two looks at the shop.
const LOOK: Duration = Duration::from_millis(100);

/// A process that runs the projector and the saga, as far as the story is concerned.
pub(super) struct Worker {
    pub(super) handle: RunnerHandle,
    pub(super) breaker: CircuitBreaker,
    /// The number of events that its projector has met.
    pub(super) projected: Arc<AtomicU64>,
}

/// The shop, and what its customers have decided so far.
pub(super) struct Day<W> {
    pub(super) backend: Backend,
    pub(super) provider: PaymentProvider,
    pub(super) carts: Repository<Cart>,
    pub(super) tally: Tally,
    /// The orders that were checked out, with their totals.
    pub(super) orders: BTreeMap<CartId, Money>,
    out: W,
    publishing: JoinHandle<Result<PollReport, PollError>>,
    publisher: CancellationToken,
    _guard: DropGuard,
}

impl<W: Write + Send> Day<W> {
    /// Opens the shop. The publisher runs until the shop closes.
    pub(super) fn open(backend: Backend, out: W) -> Self {
        let (publisher, publishes) = (CancellationToken::new(), backend.publisher());
        let stop = publisher.clone();
        let publishing = tokio::spawn(async move {
            let stopped = stop.cancelled_owned();
            publishes.poll(PollConfig::default(), stopped).await
        });
        Self {
            carts: backend.carts(),
            provider: PaymentProvider::default(),
            tally: Tally::default(),
            orders: BTreeMap::new(),
            _guard: publisher.clone().drop_guard(),
            publisher,
            publishing,
            backend,
            out,
        }
    }

    /// Closes the shop, and returns the number of records that were sent.
    pub(super) async fn close(self) -> Result<u64, BoxError> {
        self.publisher.cancel();
        Ok(self.publishing.await??.messages)
    }

    /// Starts a worker of the release that cannot read the lines of the old till, or of the one
    /// after it.
    pub(super) fn start(&self, label: &str, reads_till: bool) -> Result<Worker, BoxError> {
        let open = (Duration::from_millis(500), Duration::from_secs(4));
        let breaker = CircuitBreaker::new(BreakerPolicy::default().with_open_time(open.0, open.1))?;
        let projected = Arc::new(AtomicU64::new(0));
        let counter = projected.clone();
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let saga = PaymentSaga::new(self.backend.payments(), self.provider.clone());
        let policy = ProcessorPolicy::listener()
            .with_start(Start::Beginning)
            .with_breaker(breaker.clone());
        let mut builder = self.backend.runner().with_instance(label);
        if reads_till {
            builder = builder.with_upcasters(old_till::upcasters());
        }
        let runner = builder
            .projector(self.backend.read_model.projector().with_progress(count))
            .listener_with(saga, policy)
            .build()?;
        Ok(Worker {
            handle: runner.start(),
            breaker,
            projected,
        })
    }

    /// Executes the commands of customers, and notes what they have decided.
    pub(super) async fn shop(
        &mut self,
        commands: impl IntoIterator<Item = (CartId, CartCommand)>,
    ) -> Result<(), BoxError> {
        for (cart, command) in commands {
            match self.carts.execute(&cart, command).await {
                Ok(done) => self.decided(&cart, done.events())?,
                // The cart's own rules; the first story tells about them.
                Err(ExecuteError::Rejected(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Notes events that were decided.
    pub(super) fn decided(&mut self, cart: &CartId, events: &[CartEvent]) -> Result<(), BoxError> {
        self.tally.add(cart, events)?;
        for event in events {
            if let CartEvent::CartCheckedOut { total } = event {
                self.orders.insert(cart.clone(), *total);
            }
        }
        Ok(())
    }

    /// Writes one line of the story.
    pub(super) fn say(&mut self, line: impl AsRef<str>) -> Result<(), BoxError> {
        Ok(writeln!(self.out, "{}", line.as_ref())?)
    }

    /// Carries out a command of the operator, and shows it with what it has printed.
    pub(super) async fn operate(&mut self, words: &[&str]) -> Result<Outcome, BoxError> {
        let shown: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        self.say(format!("   $ shop {}", shown.join(" ")))?;
        let command = operator::parse(words)?;
        let (operator, publisher) = (self.backend.operator(), self.backend.publisher());
        let mut text = Vec::new();
        let stop = CancellationToken::new();
        let outcome = Console::new(&operator, &publisher, &mut text)
            .run(&command, &stop)
            .await?;
        for line in String::from_utf8_lossy(&text).lines() {
            self.say(format!("     {line}"))?;
        }
        Ok(outcome)
    }

    /// Waits until the shop is as the story needs it.
    pub(super) async fn until(
        &self,
        what: &str,
        mut is_so: impl AsyncFnMut(&Self) -> Result<bool, BoxError>,
    ) -> Result<(), BoxError> {
        let started = Instant::now();
        while !is_so(self).await? {
            if started.elapsed() > PATIENCE {
                return Err(format!("after {PATIENCE:?} it is still not so that {what}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Returns the report over the orders of the story.
    pub(super) async fn report(&self) -> Result<Report, BoxError> {
        let rows = &self.backend.read_model;
        let model = active_model(&self.backend.operator(), OrderRow::NAME).await?;
        Ok(Report::read(rows, &model, |order| self.tally.has(order.id())).await?)
    }

    /// Returns what the provider has charged for the orders of the story.
    pub(super) fn charges(&self) -> Vec<(CartId, Money)> {
        let mut charges = self.provider.charges();
        charges.retain(|(order, _)| self.orders.contains_key(order));
        charges
    }

    /// Returns true if the read model shows all that was decided, and all orders are paid, or all
    /// but so many of them.
    pub(super) async fn is_settled(&self, unpaid: usize) -> Result<bool, BoxError> {
        let is_paid = self.charges().len() + unpaid == self.orders.len();
        Ok(is_paid && self.report().await? == self.tally.report())
    }

    /// Returns the number of dead letters of the saga, and of parked streams of the projector.
    pub(super) async fn set_aside(&self) -> Result<(usize, usize), BoxError> {
        let page = NonZeroU32::MIN.saturating_add(999);
        let operator = self.backend.operator();
        let names = operator.processors().await?;
        if names.len() < 2 {
            return Ok((0, 0));
        }
        let letters = operator.letters(
            <PaymentSaga as foldstream::runner::Listener>::NAME,
            None,
            page,
        );
        let parked = operator.parked(crate::projector::SalesProjector::NAME, None, page);
        Ok((letters.await?.items.len(), parked.await?.items.len()))
    }
}

fn quoted(word: &str) -> String {
    match word.contains(' ') {
        true => format!("{word:?}"),
        false => word.into(),
    }
}
