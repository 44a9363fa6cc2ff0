//! The SDK clients that all stores of one deployment share.
use crate::{ConfigError, DynamoDbConfig, DynamoDbError, error::Place};
use aws_credential_types::Credentials;
use aws_sdk_dynamodb::{
    Client,
    config::{
        BehaviorVersion, Builder, Region, SharedCredentialsProvider, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
};
use std::{sync::Arc, time::Duration};

/// Clients, table names and settings; cloning is a reference count.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    client: Client,
    /// Sends once. The SDK's own retries would hide that an earlier attempt was lost and may still land; an append must
    /// know, since only then a later "throttled" does not mean "not applied".
    once: Client,
    config: DynamoDbConfig,
    has_transactions: bool,
    endpoint: String,
    events: String,
    snapshots: String,
    control: String,
}

impl Connection {
    /// Connects as the configuration says. Nothing is sent yet.
    pub(crate) async fn open(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        config.validate()?;
        let client = Client::from_conf(sdk_config(&config).await?);
        Ok(Self::with_client(client, config))
    }

    /// Uses the caller's client; of the configuration, what concerns the connection is ignored.
    pub(crate) fn with_client(client: Client, config: DynamoDbConfig) -> Self {
        let once = client.config().to_builder();
        let once = Client::from_conf(once.retry_config(RetryConfig::disabled()).build());
        let endpoint = match (&config.endpoint, client.config().region()) {
            (Some(url), _) => url.clone(),
            (None, Some(region)) => format!("DynamoDB in {region}"),
            (None, None) => "DynamoDB".into(),
        };
        Self(Arc::new(Inner {
            client,
            once,
            endpoint,
            has_transactions: true,
            events: config.events_table(),
            snapshots: config.snapshots_table(),
            control: config.control_table(),
            config,
        }))
    }

    /// Repeats what is safe to repeat.
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }
    /// Sends every request once.
    pub(crate) fn once(&self) -> &Client {
        &self.0.once
    }
    /// A number that only handles to this connection have.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
    pub(crate) fn config(&self) -> &DynamoDbConfig {
        &self.0.config
    }
    pub(crate) fn events(&self) -> &str {
        &self.0.events
    }
    pub(crate) fn snapshots(&self) -> &str {
        &self.0.snapshots
    }
    pub(crate) fn control(&self) -> &str {
        &self.0.control
    }
    /// Whether the tables take transactions.
    pub(crate) fn has_transactions(&self) -> bool {
        self.0.has_transactions
    }
    /// The same, for tables that take none.
    pub(crate) fn without_transactions(&self) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.has_transactions = false;
        Self(Arc::new(inner))
    }
    /// What an error says about where it happened.
    pub(crate) fn at<'a>(&'a self, operation: &'static str, table: &'a str) -> Place<'a> {
        Place {
            operation,
            table,
            endpoint: &self.0.endpoint,
        }
    }
}

async fn sdk_config(config: &DynamoDbConfig) -> Result<aws_sdk_dynamodb::Config, ConfigError> {
    let builder = if config.is_plain_http() {
        plain_http(config)
    } else {
        over_tls(config).await?
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.connect_timeout)
        .operation_attempt_timeout(config.attempt_timeout)
        .build();
    // DynamoDB answers in milliseconds; the SDK's first pause of up to a second is meant for slower services.
    let retries = RetryConfig::standard()
        .with_max_attempts(config.max_attempts.max(1))
        .with_initial_backoff(Duration::from_millis(50));
    Ok(builder
        .timeout_config(timeouts)
        .retry_config(retries)
        .build())
}

/// An emulator. It wants some region and some signature, whatever they are.
fn plain_http(config: &DynamoDbConfig) -> Builder {
    let region = config.region.clone().unwrap_or_else(|| "us-east-1".into());
    let credentials = config.credentials().cloned().unwrap_or_else(|| {
        // Letters and digits only: DynamoDB Local refuses other access keys.
        Credentials::new("local", "local", None, None, "plain HTTP endpoint")
    });
    let mut builder = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new(region))
        .credentials_provider(SharedCredentialsProvider::new(credentials));
    builder.set_endpoint_url(config.endpoint.clone());
    builder
}

#[cfg(feature = "https")]
async fn over_tls(config: &DynamoDbConfig) -> Result<Builder, ConfigError> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(credentials) = config.credentials() {
        loader = loader.credentials_provider(credentials.clone());
    }
    if let Some(url) = &config.endpoint {
        loader = loader.endpoint_url(url);
    }
    let loaded = loader.load().await;
    if loaded.region().is_none() {
        return Err(ConfigError::NoRegion);
    }
    Ok(Builder::from(&loaded))
}

#[cfg(not(feature = "https"))]
#[expect(clippy::unused_async, reason = "the feature `https` awaits here")]
async fn over_tls(config: &DynamoDbConfig) -> Result<Builder, ConfigError> {
    Err(ConfigError::HttpsDisabled {
        endpoint: config
            .endpoint
            .clone()
            .unwrap_or_else(|| "DynamoDB in AWS".into()),
    })
}
