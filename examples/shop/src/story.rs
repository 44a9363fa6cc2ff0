//! The story that `cargo run -p shop` tells: commands, refusals, events, the publisher, the
//! projections, a crash.
use crate::{
    backend::Backend,
    cart::{Cart, CartCommand, CartEvent, CartId, CartRefusal},
    generate::shopping,
    listener::{ConfirmationListener, MailService},
    pipeline,
    read_model::OrderRow,
    report::Report,
    tally::Tally,
};
use foldstream::{
    BoxError, DomainEvent, ExecuteError, Repository,
    runner::{BuildError, ProcessorPolicy, Runner, Start},
};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// The generated customers of a run.
#[derive(Clone, Debug)]
pub struct Customers {
    /// The number of customers.
    pub count: u32,
    /// The seed that decides what they do.
    pub seed: u64,
}

/// Tells the whole story and returns the report.
///
/// # Errors
/// Any error of a step, among them projections that differ from a direct aggregation.
pub async fn tell(backend: &Backend, customers: &Customers) -> Result<Report, BoxError> {
    let commands = shopping(customers.seed, customers.count, &backend.cart_prefix);
    println!(
        "1. {} customers shop (seed {})",
        customers.count, customers.seed
    );
    let tally = shop(&backend.carts(), commands).await?;
    println!("\n3. The publisher sends them, each cart in order");
    let sent = pipeline::publish_all(backend).await?;
    println!("   {sent} records on topic {}", backend.topic);
    pipeline::check_read_model(backend, None).await?;
    let mails = MailService::default();
    crash(backend, &mails, sent).await?;
    catch_up(backend, &mails).await?;
    println!("\n6. The projections");
    let report = pipeline::check(backend, &tally).await?;
    tell_report(&report);
    println!(
        "   They equal a direct aggregation of what was decided: nothing lost, nothing counted twice."
    );
    Ok(report)
}

/// The counted outcomes of the commands.
#[derive(Debug, Default)]
struct Outcome {
    commands: usize,
    tally: Tally,
    events: usize,
    refusals: BTreeMap<&'static str, usize>,
    told_events: usize,
}

async fn shop(
    carts: &Repository<Cart>,
    commands: Vec<(CartId, CartCommand)>,
) -> Result<Tally, BoxError> {
    let mut outcome = Outcome::default();
    let mut favourite = None;
    for (id, command) in commands {
        outcome.commands += 1;
        match carts.execute(&id, command.clone()).await {
            Ok(done) => {
                outcome.tally.add(&id, done.events())?;
                outcome.events += done.events().len();
                outcome.tell_event(&id, &command, done.events());
                if done.state().is_checked_out() && done.version().get() > 3 {
                    favourite.get_or_insert(id);
                }
            }
            // The aggregate refused the command with a reason that the caller can match on.
            Err(ExecuteError::Rejected(refusal)) => outcome.refused(&id, &command, &refusal),
            Err(error) => return Err(error.into()),
        }
    }
    let refused: usize = outcome.refusals.values().sum();
    println!(
        "   {} commands: {} events stored, {refused} commands refused",
        outcome.commands, outcome.events
    );
    for (reason, count) in &outcome.refusals {
        println!("     {count:4} x {reason}");
    }
    if let Some(id) = favourite {
        tell_cart(carts, &id).await?;
    }
    Ok(outcome.tally)
}

impl Outcome {
    fn tell_event(&mut self, id: &CartId, command: &CartCommand, events: &[CartEvent]) {
        const SHOWN: usize = 3;
        if self.told_events < SHOWN {
            self.told_events += 1;
            let names: Vec<_> = events
                .iter()
                .map(|event| event.event_type().name())
                .collect();
            println!("   {id}  {:26} -> {}", words(command), names.join(", "));
        }
    }

    fn refused(&mut self, id: &CartId, command: &CartCommand, refusal: &CartRefusal) {
        let times = self.refusals.entry(kind_of(refusal)).or_default();
        *times += 1;
        if *times == 1 {
            println!("   {id}  {:26} -> refused: {refusal}", words(command));
        }
    }
}

fn words(command: &CartCommand) -> String {
    match command {
        CartCommand::AddItem { item, .. } => {
            format!(
                "add {} x {} at {}",
                item.quantity, item.stock_code, item.unit_price
            )
        }
        CartCommand::RemoveItem { stock_code } => format!("remove {stock_code}"),
        CartCommand::CheckOut => "check out".into(),
    }
}

const fn kind_of(refusal: &CartRefusal) -> &'static str {
    match refusal {
        CartRefusal::AlreadyCheckedOut => "checked out already",
        CartRefusal::NoUnits { .. } => "no units",
        CartRefusal::NotInStock { .. } => "not in stock",
        CartRefusal::NotInCart { .. } => "not in the cart",
        CartRefusal::Empty => "nothing to check out",
        CartRefusal::NoTotal(_) => "no exact total",
    }
}

async fn tell_cart(carts: &Repository<Cart>, id: &CartId) -> Result<(), BoxError> {
    let cart = carts.load(id).await?;
    println!("\n2. A cart is the fold of its events");
    println!(
        "   {id} after {} events: {} items, {} in all, checked out",
        cart.version(),
        cart.state().items().len(),
        cart.state().total()?
    );
    Ok(())
}

/// Builds the process that projects, with a projector for the report and a listener that confirms
/// orders by mail.
fn runner(
    backend: &Backend,
    mails: &MailService,
    progress: impl Fn() + Send + Sync + 'static,
) -> Result<Runner, BuildError> {
    let projector = backend.read_model.projector().with_progress(progress);
    // Commits offsets often, so that the crash finds some work done. The default of a second costs
    // the servers less.
    let often = Duration::from_millis(5);
    backend
        .runner()
        .projector_with(
            projector,
            ProcessorPolicy::projector().with_commit_interval(often),
        )
        .listener_with(
            ConfirmationListener::new(mails.clone()),
            // A listener starts with new events unless it is configured otherwise.
            ProcessorPolicy::listener()
                .with_start(Start::Beginning)
                .with_commit_interval(often),
        )
        .build()
}

/// Ends the projector's process as a power failure would: nothing is finished, nothing is
/// committed.
async fn crash(backend: &Backend, mails: &MailService, events: u64) -> Result<(), BoxError> {
    println!("\n4. A projector and a listener start; their process crashes");
    let (projected, crashing) = (AtomicU64::new(0), CancellationToken::new());
    let crash = crashing.clone();
    let progress = move || {
        if projected.fetch_add(1, Ordering::Relaxed) >= events * 3 / 4 {
            crash.cancel();
        }
    };
    let runner = runner(backend, mails, progress)?;
    tokio::select! {
        biased;
        () = crashing.cancelled() => {}
        report = runner.run_until_caught_up() => drop(report.into_result()?),
    }
    drop(runner);
    let model = pipeline::active_model(&backend.operator(), OrderRow::NAME).await?;
    let durable = Report::read(&backend.read_model, &model, |_| true).await?;
    println!(
        "   the read model holds {} events of {events}; what was only in memory is gone",
        durable.events
    );
    Ok(())
}

/// Starts the process of the projector again.
async fn catch_up(backend: &Backend, mails: &MailService) -> Result<(), BoxError> {
    println!("\n5. It starts again and goes on from the last commit");
    let runner = runner(backend, mails, || ())?;
    let report = runner.run_until_caught_up().await.into_result()?;
    for processor in report {
        println!(
            "   {:14} {:5} events handled, {} known already and dropped",
            processor.name, processor.handled, processor.duplicates
        );
    }
    let (sent, repeated) = mails.counts();
    println!("   {sent} orders are confirmed by mail");
    if repeated > 0 {
        println!(
            "   {repeated} of the mails came again after the crash; the mail service knew them"
        );
    }
    Ok(())
}

fn tell_report(report: &Report) {
    const SHOWN: usize = 5;
    println!("   Hot products");
    for product in report.hot_products.iter().take(SHOWN) {
        println!("   {:6} x {}", product.units, product.stock_code);
    }
    println!("   Revenue by country");
    let mut countries: Vec<_> = report.revenue_by_country.iter().collect();
    countries.sort_by_key(|(_, revenue)| Reverse(**revenue));
    for (country, revenue) in countries.into_iter().take(SHOWN) {
        println!("   {:>12} {country}", revenue.to_string());
    }
    println!("   {} orders, {} events", report.orders, report.events);
}
