//! The story that `cargo run -p shop -- --chaos` tells: a bad day of the shop, and how it ends.
//!
//! A payment provider fails, a worker is killed, the brokers restart, an old till writes events
//! that nobody can read, and a limit at the provider refuses the larger orders. At the end an
//! operator has events handled again, and every total is right.
mod day;
pub mod old_till;

use crate::{
    backend::Backend,
    cart::{CartCommand, CartEvent, CartId, CartItem},
    generate::shopping,
    money::Money,
    operator::Outcome,
    report::Report,
    tally::differences,
};
use day::{Day, Worker};
use foldstream::{BoxError, breaker::CircuitState, chain, ports::MessageBusError};
use foldstream_testkit::faults::{Fault, Faults, Op};
use std::{
    collections::VecDeque, io::Write, num::NonZeroU32, sync::atomic::Ordering, time::Duration,
};

/// The number of customers of the day.
const CUSTOMERS: u32 = 120;
/// The time for which the brokers are away.
const RESTART: Duration = Duration::from_secs(2);
/// The time that a charge takes.
const LATENCY: Duration = Duration::from_millis(20);

/// The commands of the day, in five parts.
struct Customers {
    parts: VecDeque<Vec<(CartId, CartCommand)>>,
}

impl Customers {
    fn new(seed: u64, prefix: &str) -> Self {
        let commands = shopping(seed, CUSTOMERS, prefix);
        let size = commands.len().div_ceil(5);
        let parts = commands.chunks(size).map(<[_]>::to_vec).collect();
        Self { parts }
    }

    fn next(&mut self) -> Vec<(CartId, CartCommand)> {
        self.parts.pop_front().unwrap_or_default()
    }
}

/// Tells the whole story to `out` and returns the report.
///
/// # Errors
/// Any error of a step, among them totals that differ from a direct aggregation.
pub async fn tell(
    backend: &Backend,
    seed: u64,
    out: impl Write + Send,
) -> Result<Report, BoxError> {
    // The brokers fail at the port, so that the story is the same on every bus.
    let brokers = Faults::none();
    let mut backend = backend.clone();
    backend.bus = brokers.message_bus(backend.bus);
    let mut customers = Customers::new(seed, &backend.cart_prefix);
    let mut day = Day::open(backend, out);
    day.provider.set_latency(LATENCY);
    let (first, second) = morning(&mut day, &mut customers).await?;
    provider_fails(&mut day, &mut customers, [&first, &second]).await?;
    worker_is_killed(&mut day, &mut customers, second).await?;
    brokers_restart(&mut day, &mut customers, &brokers, &first).await?;
    let unpaid = events_fail(&mut day, &mut customers).await?;
    let last = release(&mut day, first).await?;
    redrive(&mut day, unpaid).await?;
    let report = totals(&mut day).await?;
    last.handle.stop();
    last.handle.wait().await.into_result()?;
    day.close().await?;
    Ok(report)
}

async fn morning<W: Write + Send>(
    day: &mut Day<W>,
    customers: &mut Customers,
) -> Result<(Worker, Worker), BoxError> {
    day.say("1. Two workers start: each projects sales, and has orders paid")?;
    let workers = (day.start("worker-a", false)?, day.start("worker-b", false)?);
    day.shop(customers.next()).await?;
    day.until("the first orders are paid", async |day| {
        day.is_settled(0).await
    })
    .await?;
    let paid = day.orders.len();
    day.say(format!(
        "   {paid} orders are checked out and paid, each once"
    ))?;
    Ok(workers)
}

async fn provider_fails<W: Write + Send>(
    day: &mut Day<W>,
    customers: &mut Customers,
    workers: [&Worker; 2],
) -> Result<(), BoxError> {
    let is = |wanted: fn(CircuitState) -> bool| {
        move || workers.iter().any(|worker| wanted(worker.breaker.state()))
    };
    day.say("\n2. The payment provider does not answer any more")?;
    day.provider.set_down(true);
    day.shop(customers.next()).await?;
    watch(is(|state| matches!(state, CircuitState::Open { .. }))).await?;
    day.say("   the circuit breaker opens: no more calls, and the orders wait, in order")?;
    watch(is(|state| state == CircuitState::HalfOpen)).await?;
    day.say("   it is half-open after a while: a single call probes whether the provider is back")?;
    day.provider.set_down(false);
    day.until("the orders are paid", async |day| day.is_settled(0).await)
        .await?;
    let all_closed = || {
        workers
            .iter()
            .all(|w| w.breaker.state() == CircuitState::Closed)
    };
    watch(all_closed).await?;
    let (dead, _) = day.set_aside().await?;
    let paid = day.orders.len();
    day.say(format!(
        "   the provider is back: the breaker closes, {paid} orders are paid, {dead} dead letters"
    ))
}

async fn worker_is_killed<W: Write + Send>(
    day: &mut Day<W>,
    customers: &mut Customers,
    worker: Worker,
) -> Result<(), BoxError> {
    day.say("\n3. A worker is killed in the middle of its work")?;
    let before = worker.projected.load(Ordering::Relaxed);
    day.shop(customers.next()).await?;
    watch(|| worker.projected.load(Ordering::Relaxed) > before).await?;
    // Nothing is finished and nothing is committed, as in a power failure.
    drop(worker);
    day.until("the other worker has caught up", async |day| {
        day.is_settled(0).await
    })
    .await?;
    let orders = day.orders.len();
    day.say("   worker-b is gone, with whatever it had only in memory")?;
    day.say(format!(
        "   worker-a takes over its partitions: {orders} orders are paid, none of them twice"
    ))
}

async fn brokers_restart<W: Write + Send>(
    day: &mut Day<W>,
    customers: &mut Customers,
    brokers: &Faults,
    worker: &Worker,
) -> Result<(), BoxError> {
    day.say(format!(
        "\n4. The brokers restart, and are away for {RESTART:?}"
    ))?;
    let away = Fault::error(|| MessageBusError::Unavailable {
        source: "connection refused".into(),
    });
    brokers.set([away.anywhere()]);
    day.shop(customers.next()).await?;
    tokio::time::sleep(RESTART).await;
    let asked = day.backend.bus.offsets(&day.backend.topic).await;
    let error = asked.err().ok_or("the brokers should be away")?;
    let is_transient = MessageBusError::is_transient(&error);
    day.say(format!(
        "   \"{}\": commands are accepted all the same",
        chain(&error)
    ))?;
    let halted = worker
        .handle
        .report()
        .processors
        .iter()
        .any(|p| p.error.is_some());
    if halted || !is_transient {
        return Err("an outage halts nothing".into());
    }
    // The group has lost its members, who join again.
    brokers.set([Fault::LoseSession.on(Op::Next).first(1)]);
    day.until("the events are handled", async |day| {
        day.is_settled(0).await
    })
    .await?;
    brokers.disable();
    let orders = day.orders.len();
    day.say(format!(
        "   they are back: nothing has halted, worker-a has joined again, {orders} orders are paid"
    ))
}

/// Returns the number of orders that cannot be paid.
async fn events_fail<W: Write + Send>(
    day: &mut Day<W>,
    customers: &mut Customers,
) -> Result<usize, BoxError> {
    day.say("\n5. An old till is switched on, and the provider lowers a limit")?;
    let known = day.orders.clone();
    let limit = Money::from_cents(5_000);
    day.provider.set_limit(Some(limit));
    day.shop(customers.next()).await?;
    let new = day
        .orders
        .iter()
        .filter(|(order, _)| !known.contains_key(*order));
    let unpaid = new.filter(|(_, total)| **total > limit).count();
    // The cart is known, so that what comes after the till's line has to wait for it.
    let (till, item) = till(&day.backend.cart_prefix)?;
    let add = |quantity| {
        let item = CartItem {
            quantity,
            ..item.clone()
        };
        (
            till.clone(),
            CartCommand::AddItem {
                item,
                in_stock: 100,
            },
        )
    };
    day.shop([add(2)]).await?;
    let rung = CartItem {
        quantity: 3,
        ..item.clone()
    };
    old_till::ring_up(&day.backend, &till, &rung).await?;
    // The projector must not see it before the release that can read it.
    day.until("the events are set aside", async |day| {
        Ok(day.set_aside().await? == (unpaid, 1))
    })
    .await?;
    day.decided(&till, &[CartEvent::CartItemAdded(rung)])?;
    day.carts = day.backend.carts().with_upcasters(old_till::upcasters());
    day.shop([add(5)]).await?;
    day.until("what follows the till's line waits", async |day| {
        let page = NonZeroU32::MIN;
        let parked = day.backend.operator().parked("sales", None, page).await?;
        Ok(parked
            .items
            .first()
            .is_some_and(|parked| parked.high > parked.from))
    })
    .await?;
    day.say("   the till's line cannot be read: the projector parks this one cart and goes on")?;
    day.say(format!(
        "   {unpaid} orders are above the limit: they become dead letters, and the saga goes on"
    ))?;
    day.operate(&["parked", "sales"]).await?;
    day.operate(&["letters", "groups", "payments"]).await?;
    Ok(unpaid)
}

fn till(prefix: &str) -> Result<(CartId, CartItem), BoxError> {
    let item = CartItem {
        stock_code: "85123A".into(),
        description: String::new(),
        quantity: 0,
        unit_price: Money::from_cents(295),
        invoiced_at: "2010-12-01T17:00:00Z".parse()?,
        customer: None,
        country: "EIRE".into(),
    };
    Ok((CartId::new(format!("{prefix}till")), item))
}

/// Deploys the release that can read the lines of the till.
async fn release<W: Write + Send>(day: &mut Day<W>, old: Worker) -> Result<Worker, BoxError> {
    day.say(
        "\n6. A release with an upcaster for the till's lines is deployed; the limit is raised",
    )?;
    day.provider.set_limit(None);
    let new = day.start("worker-c", true)?;
    old.handle.stop();
    old.handle.wait().await.into_result()?;
    day.say("   worker-c has started, worker-a has finished its work and left")?;
    Ok(new)
}

async fn redrive<W: Write + Send>(day: &mut Day<W>, unpaid: usize) -> Result<(), BoxError> {
    day.say("\n7. The operator has the events handled again")?;
    let stream = format!("cart#{}till", day.backend.cart_prefix);
    day.operate(&["redrive", "payments", "all", "--dry-run"])
        .await?;
    let by = ["--who", "ann", "--why"];
    let why = [&by[..], &["the limit is raised"]].concat();
    let payments = [&["redrive", "payments", "all"], &why[..]].concat();
    let why = [&by[..], &["release 2 reads the till's lines"]].concat();
    let sales = [&["redrive", "sales", "stream", &stream], &why[..]].concat();
    for command in [&payments, &sales] {
        if day.operate(command).await? != Outcome::Done {
            return Err("the redrive should leave nothing".into());
        }
    }
    day.until("all is settled", async |day| day.is_settled(0).await)
        .await?;
    if day.set_aside().await? != (0, 0) {
        return Err("something is still set aside".into());
    }
    day.operate(&["audit"]).await?;
    day.say(format!(
        "   {unpaid} orders more are paid, and the till's cart is complete"
    ))
}

async fn totals<W: Write + Send>(day: &mut Day<W>) -> Result<Report, BoxError> {
    day.say("\n8. The totals")?;
    let (expected, found) = (day.tally.report(), day.report().await?);
    if found != expected {
        return Err(differences(&expected, &found).join("; ").into());
    }
    let charges = day.charges();
    let add = |sum: Money, amount: &Money| sum.plus(*amount);
    let charged = charges
        .iter()
        .map(|(_, amount)| amount)
        .try_fold(Money::ZERO, add)?;
    let ordered = day.orders.values().try_fold(Money::ZERO, add)?;
    if charges.len() != day.orders.len() || charged != ordered {
        return Err(format!("{charged} charged for orders of {ordered}").into());
    }
    day.say(format!(
        "   {} orders of {ordered}, {} payments of {charged}: every order is paid once",
        day.orders.len(),
        charges.len()
    ))?;
    day.say(format!(
        "   {} carts, {} events in the read model",
        found.orders, found.events
    ))?;
    day.say("   They equal a direct aggregation of what was decided: nothing lost, nothing counted twice.")?;
    Ok(found)
}

/// Waits for something that may last for a moment only.
async fn watch(is_so: impl Fn() -> bool) -> Result<(), BoxError> {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let patience = Duration::from_secs(120);
    let seen = tokio::time::timeout(patience, looks).await;
    seen.map_err(|_| format!("a turn of the story did not come within {patience:?}").into())
}
