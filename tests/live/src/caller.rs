//! A process that calls a service through a distributed breaker.
use crate::{WorkerSettings, effects};
use foldstream::breaker::{BreakerPolicy, CircuitState, DistributedBreaker};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

/// The time between two reads of the votes.
const RENEW: Duration = Duration::from_secs(2);

/// Calls the service again and again until `stop` is ready. Every change of the circuit is a line
/// in the file of moves: the instance and the state.
pub(crate) async fn run(settings: &WorkerSettings, stop: impl Future<Output = ()>) {
    let control = settings.stores().await.control_store();
    let policy = BreakerPolicy::default()
        .with_open_time(Duration::from_millis(500), Duration::from_millis(1000));
    let name = settings.name.as_str();
    let part = DistributedBreaker::new(name, &*settings.instance, policy, control).unwrap();
    let part = part.with_renew(RENEW).unwrap();
    let (breaker, stopped) = (part.breaker(), CancellationToken::new());
    let exchange = tokio::spawn(part.run(stopped.clone()));
    let moves = effects::append_to(&settings.moves());
    let calls = async {
        let mut before = None;
        loop {
            let call = call(&settings.service, &settings.instance);
            let answer = breaker.call_when(call, |_| true).await;
            tracing::debug!(is_ok = answer.is_ok(), "called");
            let state = match breaker.state() {
                CircuitState::Closed => "closed",
                CircuitState::HalfOpen => "half-open",
                _ => "open",
            };
            if before.replace(state) != Some(state) {
                effects::add_line(&moves, format!("{} {state}", settings.instance));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = calls => {}
        () = stop => {}
    }
    stopped.cancel();
    exchange.await.unwrap();
}

/// Sends the name of the caller, and expects a `y`.
async fn call(service: &str, instance: &str) -> io::Result<()> {
    let mut connection = TcpStream::connect(service).await?;
    connection
        .write_all(format!("{instance}\n").as_bytes())
        .await?;
    match connection.read_u8().await? {
        b'y' => Ok(()),
        _ => Err(io::Error::other("the service has failed")),
    }
}
