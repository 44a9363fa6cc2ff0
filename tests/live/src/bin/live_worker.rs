//! One process of a service, for tests that kill and freeze it. `FOLDSTREAM_WORKER` has its
//! settings.

#[tokio::main]
async fn main() {
    foldstream_live::run(foldstream_live::WorkerSettings::from_environment()).await;
}
