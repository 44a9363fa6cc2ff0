use super::http::{Hotel, serve};
use foldstream::{
    BoxError,
    ports::{ControlStore, EventStore, MessageBus},
    publisher::{PollConfig, Publisher},
    runner::Runner,
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The servers that the hotel runs on.
#[derive(Clone, Debug)]
pub struct Backend {
    pub store: Arc<dyn EventStore>,
    pub bus: Arc<dyn MessageBus>,
    pub control: Arc<dyn ControlStore>,
}

/// Serves requests, publishes their events and keeps the read model up to date, until `shutdown`.
pub async fn run(
    backend: Backend,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), BoxError> {
    let Backend {
        store,
        bus,
        control,
    } = backend;
    let hotel = Hotel::new(store.clone(), control.clone());
    let publisher = Publisher::new(store.clone(), bus.clone(), control.clone())
        .with_source("urn:example:hotel".parse()?);
    publisher.check_topics(["room", "booking"]).await?;
    let runner = Runner::builder(bus, control, "hotel")
        .with_event_store(store)
        .projector(hotel.arrivals.clone())
        .build()?;

    // Whichever part ends first, of itself or by an error, stops the other two.
    let publishing = async {
        let _stop = shutdown.clone().drop_guard();
        publisher
            .poll(PollConfig::default(), shutdown.cancelled())
            .await
    };
    let projecting = async {
        let _stop = shutdown.clone().drop_guard();
        runner.run(shutdown.cancelled()).await.into_result()
    };
    let serving = async {
        let _stop = shutdown.clone().drop_guard();
        serve(listener, hotel, shutdown.clone()).await
    };
    let (published, projected, served) = tokio::join!(publishing, projecting, serving);
    published?;
    projected?;
    served?;
    Ok(())
}
