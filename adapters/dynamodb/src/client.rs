//! The connection that all stores of one deployment share.
use crate::{
    ConfigError, DynamoDbConfig, DynamoDbError, PublishMode,
    error::{self, Target},
    incarnation::Incarnation,
};
use aws_credential_types::Credentials;
use aws_sdk_dynamodb::{
    Client,
    config::{
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

/// The pauses between the requests of one call.
///
/// DynamoDB answers in milliseconds, so the pauses are short. If DynamoDB asks for a longer pause,
/// the call returns and leaves the wait to its caller.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(25), Duration::from_secs(1));

/// The SDK clients, table names and settings of a deployment. Cloning is a reference count.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    /// The client as it was given or configured, for the application's own requests.
    client: Client,
    /// The client that sends every request once and in bounded time.
    ///
    /// The SDK's own retries would multiply with those of this adapter. They would also hide that
    /// an earlier attempt was lost and may still be applied. An append has to know that, since only
    /// without a lost attempt does "throttled" mean "not applied".
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
    /// Creates the clients that the configuration describes. Sends no request.
    pub(crate) async fn open(config: DynamoDbConfig) -> Result<Self, DynamoDbError> {
        config.validate()?;
        let client = Client::from_conf(sdk_config(&config).await?);
        Ok(Self::with_client(client, config))
    }

    /// Creates a connection over the caller's client.
    ///
    /// The endpoint, region and credentials of the configuration are ignored. Its time limits apply
    /// only where the client has none.
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

    /// Returns the client for the application's own requests. The stores use only
    /// [`once`](Self::once).
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }
    /// Returns the client that sends every request once.
    pub(crate) fn once(&self) -> &Client {
        &self.0.once
    }

    /// Sends a request that is safe to repeat, at most `max_attempts` times in all.
    ///
    /// No attempt starts later than `attempt_timeout` after the first failure.
    pub(crate) async fn send<T, E, F>(
        &self,
        target: Target<'_>,
        request: impl FnMut() -> F,
    ) -> Result<T, SdkError<E, HttpResponse>>
    where
        E: ProvideErrorMetadata + Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        self.send_again(target, u32::MAX, request).await
    }

    /// Sends a request as [`send`](Self::send) does, but repeats it at most `repeats` times for any
    /// reason other than throttling.
    ///
    /// For requests that the caller repeats too, and for requests whose repetition would fail on
    /// the effect of the first attempt.
    pub(crate) async fn send_again<T, E, F>(
        &self,
        target: Target<'_>,
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
            let class = error::failure_class(&error, target);
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

    /// Returns the budget of requests of one call.
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
    /// Returns a number that is the same for all clones of this connection, and differs between
    /// connections.
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
    /// Returns true if the tables accept transactions.
    pub(crate) fn has_transactions(&self) -> bool {
        self.0.has_transactions
    }
    /// Returns this connection for tables that accept no transactions.
    pub(crate) fn without_transactions(&self) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.has_transactions = false;
        Self(Arc::new(inner))
    }
    /// Returns this connection for tables of a publish mode.
    pub(crate) fn in_mode(&self, mode: PublishMode) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.config.publish_mode = Some(mode);
        Self(Arc::new(inner))
    }
    /// Returns the description of a request that its errors include.
    pub(crate) fn at<'a>(&'a self, operation: &'static str, table: &'a str) -> Target<'a> {
        Target {
            operation,
            table,
            endpoint: &self.0.endpoint,
            incarnation: (table == self.events()).then_some(&*self.0.incarnation),
        }
    }
}

/// The requests that one call may still send, limited by number and by time.
#[derive(Debug)]
pub(crate) struct Requests {
    left: u32,
    attempts: Attempts<'static>,
}

impl Requests {
    /// Waits until the next request may be sent. Returns false if the budget is exhausted or
    /// waiting does not help.
    pub(crate) async fn wait(&mut self, class: FailureClass) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0 && self.attempts.wait(class).await
    }
}

/// Returns the time limits of each request: the client's own, and those of the configuration where
/// the client has none.
///
/// Every request needs a limit, since an append that never returns would block its stream forever.
///
/// The time for connecting always ends before the time for the request. If a connection is not
/// established in time, the SDK reports that nothing was sent. If the whole request runs out of
/// time, the SDK cannot say whether it was sent. The remaining tenth is for the steps before the
/// connection: resolving the endpoint, fetching credentials and signing. If these take longer, the
/// request counts as lost.
fn time_limits(own: Option<&TimeoutConfig>, config: &DynamoDbConfig) -> TimeoutConfig {
    let own_attempt = own.and_then(TimeoutConfig::operation_attempt_timeout);
    let attempt = own_attempt.unwrap_or(config.attempt_timeout);
    // An operation is a single attempt, and the time for the answer also covers connecting.
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
    let builder = tables::builder(config).await?;
    // For the application's own requests only. DynamoDB answers in milliseconds, and the SDK's
    // first pause of up to a second is meant for slower services.
    let retries = RetryConfig::standard()
        .with_max_attempts(config.max_attempts.max(1))
        .with_initial_backoff(Duration::from_millis(50));
    Ok(builder
        .timeout_config(time_limits(None, config))
        .retry_config(retries)
        .build())
}

/// Defines how the configuration of a service's client follows from that of this adapter. The SDK
/// has the same builder for each service, in a crate of its own.
macro_rules! client_config {
    ($sdk:ident) => {
        use $sdk::config::{BehaviorVersion, Builder, Region, SharedCredentialsProvider};

        /// Returns the SDK configuration for an emulator, which needs a region and a signature but
        /// accepts any.
        fn plain_http(config: &DynamoDbConfig) -> Builder {
            let region = config.region.clone().unwrap_or_else(|| "us-east-1".into());
            let credentials = config.credentials().cloned().unwrap_or_else(|| {
                // Only letters and digits, since DynamoDB Local refuses other access keys.
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

        /// Returns the SDK configuration for a build without the SDK's default chain, in which
        /// region and credentials come from the configuration.
        #[cfg(all(feature = "tls", not(feature = "https")))]
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
        async fn over_tls(config: &DynamoDbConfig) -> Result<Builder, ConfigError> {
            Err(ConfigError::HttpsDisabled {
                endpoint: config
                    .endpoint
                    .clone()
                    .unwrap_or_else(|| "DynamoDB in AWS".into()),
            })
        }

        /// Returns the configuration without times and retries.
        pub(super) async fn builder(config: &DynamoDbConfig) -> Result<Builder, ConfigError> {
            if config.is_plain_http() {
                Ok(plain_http(config))
            } else {
                over_tls(config).await
            }
        }
    };
}

mod tables {
    use super::{ConfigError, Credentials, DynamoDbConfig};
    client_config!(aws_sdk_dynamodb);
}
#[cfg(feature = "streams")]
mod streams {
    use super::{ConfigError, Credentials, DynamoDbConfig};
    client_config!(aws_sdk_dynamodbstreams);
}

/// Returns a client of the streams API for this configuration.
#[cfg(feature = "streams")]
pub(crate) async fn streams_client(
    config: &DynamoDbConfig,
) -> Result<aws_sdk_dynamodbstreams::Client, ConfigError> {
    let builder = streams::builder(config).await?;
    Ok(aws_sdk_dynamodbstreams::Client::from_conf(builder.build()))
}

/// Returns a client of the streams API that sends every request once and in bounded time.
#[cfg(feature = "streams")]
pub(crate) fn once_streams(
    client: &aws_sdk_dynamodbstreams::Client,
    config: &DynamoDbConfig,
) -> aws_sdk_dynamodbstreams::Client {
    let own = client.config();
    let once = own
        .to_builder()
        .retry_config(RetryConfig::disabled())
        .timeout_config(time_limits(own.timeout_config(), config));
    aws_sdk_dynamodbstreams::Client::from_conf(once.build())
}
