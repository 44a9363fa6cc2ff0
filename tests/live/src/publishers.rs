//! A process that publishes, by one of the three triggers.
use crate::{RecordedBus, Role, WorkerSettings};
use foldstream::{
    Backoff,
    publisher::{PollConfig, Publisher, SweepConfig, TopicRoute},
};
use foldstream_dynamodb::streams::{StreamsConfig, StreamsReader};
use foldstream_lambda::Handler;
use std::time::Duration;

/// The time after which another process takes over from one that was killed.
const LEASE: Duration = Duration::from_secs(4);

/// Publishes until `stop` is ready. A Lambda function ends by itself, at `SIGTERM`.
pub(crate) async fn run(settings: &WorkerSettings, stop: impl Future<Output = ()> + Send) {
    let stores = settings.stores().await;
    let kafka = settings.bus();
    let bus = RecordedBus::new(kafka.clone(), &settings.folder);
    let publisher = Publisher::new(stores.event_store(), bus, stores.control_store())
        .with_route(TopicRoute::One(settings.name.as_str().into()))
        .with_source("urn:foldstream:live".parse().unwrap())
        .with_instance(&*settings.instance);
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let sweep = SweepConfig::default()
        .with_interval(Duration::from_secs(5))
        .with_backoff(backoff);
    match settings.role {
        Role::Poller => {
            let config = PollConfig::default()
                .with_lease(LEASE)
                .with_backoff(backoff);
            let report = publisher.poll(config, stop).await.unwrap();
            tracing::info!(?report, "the poller ends");
        }
        Role::Reader => {
            let config = StreamsConfig::default()
                .with_lease(LEASE)
                .with_coordination(Duration::from_millis(200))
                .with_idle_pause(Duration::from_millis(100))
                .with_checkpoint(Duration::from_millis(500))
                .with_backoff(backoff)
                .with_sweep(sweep);
            let reader = StreamsReader::new(&stores, publisher).await.unwrap();
            let report = reader.with_config(config).run(stop).await.unwrap();
            tracing::info!(?report, "the reader ends");
        }
        Role::Function => {
            let handler = Handler::new(publisher, kafka).with_sweep(sweep);
            foldstream_lambda::run(handler).await.unwrap();
        }
        other => unreachable!("{other:?} does not publish"),
    }
}
