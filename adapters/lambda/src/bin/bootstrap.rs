//! The publisher as an AWS Lambda function on the stream of the events table, configured by its
//! environment: see the README of this package.
use foldstream::BoxError;
use foldstream_lambda::{LambdaConfig, run};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("FOLDSTREAM_LOG");
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_target(true)
        .init();
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = foldstream::chain(&*error).to_string();
            tracing::error!(error, "the function cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn start() -> Result<(), BoxError> {
    let config = LambdaConfig::from_env()?;
    tracing::info!(?config, "the function starts");
    let (publisher, bus) = config.connect().await?;
    run(config.handler(publisher, bus)).await
}
