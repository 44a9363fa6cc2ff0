//! The work of a worker process.
use crate::{
    AccountEvent, Balance, Balances, Effects, Journal, Ledger, OlderAccountEvent, Role, Statements,
    WorkerSettings, accounts::Failures, caller, effects, publishers, replayer,
};
use foldstream::runner::{
    DeliveryLevel, ProcessorPolicy, Runner, RunnerBuilder, RunnerHandle, Start,
};
use std::{collections::HashMap, io, process::exit, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// Does the work of a process until it is told to stop by `SIGTERM`.
///
/// The process ends with status 1 if a processor has halted.
///
/// # Panics
/// If the settings cannot be used.
pub async fn run(settings: WorkerSettings) {
    tracing_subscriber::fmt()
        .with_env_filter(
            std::env::var("RUST_LOG").unwrap_or_else(|_| "foldstream=info,warn".to_owned()),
        )
        .with_writer(io::stderr)
        .init();
    let mut stop = signal(SignalKind::terminate()).unwrap();
    if settings.role == Role::Caller {
        caller::run(&settings, async move {
            let _ = stop.recv().await;
        })
        .await;
        return;
    }
    if matches!(settings.role, Role::Poller | Role::Reader | Role::Function) {
        publishers::run(&settings, async move {
            let _ = stop.recv().await;
        })
        .await;
        return;
    }
    if settings.role == Role::Replayer {
        replayer::run(&settings, &runner(&settings).await).await;
        return;
    }
    let handle = runner(&settings).await.start();
    let report = tokio::select! {
        report = handle.wait() => report,
        () = watch(&handle, &settings) => unreachable!(),
        _ = stop.recv() => {
            handle.stop();
            handle.wait().await
        }
    };
    if let Err(error) = report.into_result() {
        tracing::error!(%error, "a processor has halted");
        exit(1);
    }
}

async fn runner(settings: &WorkerSettings) -> Runner {
    let stores = settings.stores().await;
    let name = settings.name.as_str();
    let builder = Runner::builder(settings.bus(), stores.control_store(), name)
        .with_topics([name])
        .with_instance(&*settings.instance)
        .with_event_store(stores.event_store());
    let effects = Effects::open(&settings.folder);
    let interval = Duration::from_secs(1);
    let builder = match settings.role {
        Role::OlderBuild => builder.projector(Journal::<OlderAccountEvent>::new(effects)),
        Role::NewerBuild => builder.projector(Journal::<AccountEvent>::new(effects)),
        Role::Models | Role::Replayer => {
            let rows = stores.read_model::<Balance>();
            models(builder, settings, rows, effects, interval)
        }
        _ => {
            let rows = stores.read_model::<Balance>();
            accounts(builder, settings, rows, effects, interval)
        }
    };
    builder.build().unwrap()
}

fn accounts(
    builder: RunnerBuilder,
    settings: &WorkerSettings,
    rows: foldstream_dynamodb::ReadModel<Balance>,
    effects: Effects,
    interval: Duration,
) -> RunnerBuilder {
    let failures = Failures::new(settings.failures, settings.mended());
    let statements = Statements {
        effects: effects.clone(),
        failures,
    };
    let ledger = Ledger {
        effects: effects.clone(),
        failures,
    };
    let builder = builder
        .listener_with(
            statements,
            ProcessorPolicy::listener().with_start(Start::Beginning),
        )
        .projector_with(
            ledger,
            ProcessorPolicy::projector().with_commit_interval(interval),
        );
    models(builder, settings, rows, effects, interval)
}

/// Adds the projectors whose rows can be compared with the events.
fn models(
    builder: RunnerBuilder,
    settings: &WorkerSettings,
    rows: foldstream_dynamodb::ReadModel<Balance>,
    effects: Effects,
    interval: Duration,
) -> RunnerBuilder {
    let projector = || ProcessorPolicy::projector().with_commit_interval(interval);
    let balances = Balances {
        rows: rows.clone(),
        effects,
        failures: Failures::new(settings.failures, settings.mended()),
    };
    builder
        .projector_with(
            balances,
            projector().with_level(DeliveryLevel::Deduplicated),
        )
        .projector_with(
            rows,
            projector().with_level(DeliveryLevel::ExactlyOnceEffect),
        )
}

/// Writes down whenever partitions come or go while events are in hand.
async fn watch(handle: &RunnerHandle, settings: &WorkerSettings) {
    let moves = effects::append_to(&settings.moves());
    let mut before = HashMap::new();
    loop {
        for processor in handle.health().processors {
            let (now, held) = (processor.partitions, processor.held_records);
            let last = before.insert(processor.name.clone(), (now, held));
            if let Some((partitions, held)) = last
                && partitions != now
                && held > 0
            {
                let (name, instance) = (&processor.name, &settings.instance);
                let line = format!("{name} {instance} {partitions} {now} {held}");
                effects::add_line(&moves, line);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
