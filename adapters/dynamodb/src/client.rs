//! The SDK clients that all stores of one deployment share.
use crate::{
    ConfigError, DynamoDbConfig, DynamoDbError, PublishMode,
    error::{self, Place},
    incarnation::Incarnation,
};
use aws_credential_types::Credentials;
use aws_sdk_dynamodb::{
    Client,
    config::{
        BehaviorVersion, Builder, Region, SharedCredentialsProvider,
        http::HttpResponse,
        retry::RetryConfig,
        timeout::{TimeoutConfig, TimeoutConfigBuilder},
    },
    error::{ProvideErrorMetadata, SdkError},
};
use foldstream::{
    Backoff, RetryPolicy,
    resilience::{Attempts, FailureClass},
};
use std::{error::Error, future::Future, sync::Arc, time::Duration};

/// Pauses between the requests of one call. DynamoDB answers in milliseconds. A longer pause that it asks for is left to
/// the caller, who may have better things to do.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(25), Duration::from_secs(1));

/// Clients, table names and settings; cloning is a reference count.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    /// As it was given or configured, for what lies beside the stores.
    client: Client,
    /// Sends every request once and in bounded time. The SDK's own retries would multiply with those of this adapter, and
    /// would hide that an earlier attempt was lost and may still land; an append must know, since only then a later
    /// "throttled" does not mean "not applied".
    once: Client,
    config: DynamoDbConfig,
    incarnation: Arc<Incarnation>,
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

    /// Uses the caller's client. Of the configuration, what concerns the connection is ignored, except for time limits that
    /// the client does not have.
    pub(crate) fn with_client(client: Client, config: DynamoDbConfig) -> Self {
        let once = client.config().to_builder();
        let once = once
            .retry_config(RetryConfig::disabled())
            .timeout_config(time_limits(client.config().timeout_config(), &config));
        let once = Client::from_conf(once.build());
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
            incarnation: Arc::default(),
        }))
    }

    /// The client as the user knows it. The stores send by [`once`](Self::once) alone.
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }
    /// Sends every request once.
    pub(crate) fn once(&self) -> &Client {
        &self.0.once
    }

    /// Sends a request that may be sent again, at most `max_attempts` times in all. No attempt starts later than
    /// `attempt_timeout` after the first failure.
    pub(crate) async fn send<T, E, F>(
        &self,
        place: Place<'_>,
        request: impl FnMut() -> F,
    ) -> Result<T, SdkError<E, HttpResponse>>
    where
        E: ProvideErrorMetadata + Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        self.send_again(place, u32::MAX, request).await
    }

    /// As [`send`](Self::send), but unless DynamoDB says that it throttles, the request is sent again only so many times:
    /// others repeat it too, or it changes something that a repeat would trip over.
    pub(crate) async fn send_again<T, E, F>(
        &self,
        place: Place<'_>,
        mut repeats: u32,
        mut request: impl FnMut() -> F,
    ) -> Result<T, SdkError<E, HttpResponse>>
    where
        E: ProvideErrorMetadata + Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let mut requests = self.requests();
        loop {
            let error = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let class = error::failure_class(&error, place);
            if class == FailureClass::Transient {
                if repeats == 0 {
                    return Err(error);
                }
                repeats -= 1;
            }
            if !requests.wait(class).await {
                return Err(error);
            }
        }
    }

    /// The requests that one call may send.
    pub(crate) fn requests(&self) -> Requests {
        let config = self.config();
        let policy = RetryPolicy::new(PAUSES, config.attempt_timeout).with_max_throttle(PAUSES.max);
        Requests {
            left: config.max_attempts.max(1),
            attempts: Attempts::new(policy),
        }
    }
    /// Returns the identity of the events table.
    pub(crate) fn incarnation(&self) -> &Incarnation {
        &self.0.incarnation
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
    /// The same, for tables of this mode.
    pub(crate) fn in_mode(&self, mode: PublishMode) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.config.publish_mode = Some(mode);
        Self(Arc::new(inner))
    }
    /// What an error says about where it happened.
    pub(crate) fn at<'a>(&'a self, operation: &'static str, table: &'a str) -> Place<'a> {
        Place {
            operation,
            table,
            endpoint: &self.0.endpoint,
            incarnation: (table == self.events()).then_some(&*self.0.incarnation),
        }
    }
}

/// The requests that are left to one call: limited by number and by time.
#[derive(Debug)]
pub(crate) struct Requests {
    left: u32,
    attempts: Attempts<'static>,
}

impl Requests {
    /// Waits until the next request may be sent; false if there shall be none.
    pub(crate) async fn wait(&mut self, class: FailureClass) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0 && self.attempts.wait(class).await
    }
}

/// Time limits of each request: the client's own, and those of the configuration where it has none. An append that never
/// returns would hold the turn of its stream forever.
///
/// The time for connecting always ends first, whoever set it: the SDK says of a connection that was not made in time that
/// it was not made, and of a request whose time is over only that it is over. The tenth that is left is for what precedes
/// the connection: the endpoint, credentials that are fetched, and the signature. Where that takes longer, the request ends
/// as lost.
fn time_limits(own: Option<&TimeoutConfig>, config: &DynamoDbConfig) -> TimeoutConfig {
    let own_attempt = own.and_then(TimeoutConfig::operation_attempt_timeout);
    let attempt = own_attempt.unwrap_or(config.attempt_timeout);
    // One attempt is all there is of an operation, and the time for the answer also runs while the connection is made.
    let others = [
        own.and_then(TimeoutConfig::operation_timeout),
        own.and_then(TimeoutConfig::read_timeout),
    ];
    let request = others.into_iter().flatten().fold(attempt, Duration::min);
    let own_connect = own.and_then(TimeoutConfig::connect_timeout);
    let connect = own_connect.unwrap_or(config.connect_timeout);
    own.map_or_else(TimeoutConfigBuilder::new, TimeoutConfig::to_builder)
        .operation_attempt_timeout(attempt)
        .connect_timeout(connect.min(request / 10 * 9))
        .build()
}

async fn sdk_config(config: &DynamoDbConfig) -> Result<aws_sdk_dynamodb::Config, ConfigError> {
    let builder = if config.is_plain_http() {
        plain_http(config)
    } else {
        over_tls(config).await?
    };
    // For what users send by this client: the stores do not repeat by it. DynamoDB answers in milliseconds; the SDK's first
    // pause of up to a second is meant for slower services.
    let retries = RetryConfig::standard()
        .with_max_attempts(config.max_attempts.max(1))
        .with_initial_backoff(Duration::from_millis(50));
    Ok(builder
        .timeout_config(time_limits(None, config))
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

/// Without the SDK's default chain, region and credentials are those of the configuration.
#[cfg(all(feature = "tls", not(feature = "https")))]
#[expect(clippy::unused_async, reason = "the feature `https` awaits here")]
async fn over_tls(config: &DynamoDbConfig) -> Result<Builder, ConfigError> {
    let region = config.region.clone().ok_or(ConfigError::NoRegion)?;
    let credentials = config.credentials().ok_or(ConfigError::NoCredentials)?;
    let mut builder = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region))
        .credentials_provider(SharedCredentialsProvider::new(credentials.clone()));
    builder.set_endpoint_url(config.endpoint.clone());
    Ok(builder)
}

#[cfg(not(feature = "tls"))]
#[expect(clippy::unused_async, reason = "the feature `https` awaits here")]
async fn over_tls(config: &DynamoDbConfig) -> Result<Builder, ConfigError> {
    Err(ConfigError::HttpsDisabled {
        endpoint: config
            .endpoint
            .clone()
            .unwrap_or_else(|| "DynamoDB in AWS".into()),
    })
}
