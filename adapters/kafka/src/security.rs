//! Logins with OAuth tokens, which a provider supplies and librdkafka asks for.
//!
//! librdkafka asks for a token when a client is created, and again after four fifths of the token's
//! life. The question is an event of the client, so it is answered only while somebody serves the
//! client's events. The producer and the members of groups have threads for that at all times. A
//! client for requests has one only if there is a provider: see [`serve_while_idle`].
use async_trait::async_trait;
use foldstream::{BoxError, Timestamp};
use rdkafka::{
    client::OAuthToken,
    consumer::{BaseConsumer, ConsumerContext},
};
use std::{
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, time::timeout};

/// A token with which a client logs in, and the time at which the token expires.
///
/// # Example
/// ```
/// use foldstream::Timestamp;
/// use foldstream_kafka::Token;
/// let token = Token::new("secret", Timestamp::from_micros(1_800_000_000_000_000));
/// assert!(!format!("{token:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    value: String,
    expires: Timestamp,
}

impl Token {
    /// Creates a token from the value that is sent to the brokers and the time of its expiry.
    pub fn new(value: impl Into<String>, expires: Timestamp) -> Self {
        Self {
            value: value.into(),
            expires,
        }
    }
    /// Returns the value that is sent to the brokers, which is a secret.
    pub fn value(&self) -> &str {
        &self.value
    }
    /// Returns the time at which the token expires.
    pub const fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("value", &"***")
            .field("expires", &self.expires)
            .finish()
    }
}

/// A source of OAuth tokens for brokers that accept the SASL mechanism OAUTHBEARER.
///
/// Every client of a bus asks for a token of its own: the producer, the client for requests, and
/// each member of a group. Each asks again after four fifths of the token's life, also while it is
/// idle, and 10 s after a failure.
///
/// # Example
/// ```
/// use foldstream::{BoxError, Timestamp};
/// use foldstream_kafka::{KafkaConfig, Token, TokenProvider};
///
/// struct FromFile(std::path::PathBuf);
///
/// #[async_trait::async_trait]
/// impl TokenProvider for FromFile {
///     async fn token(&self) -> Result<Token, BoxError> {
///         let value = std::fs::read_to_string(&self.0)?;
///         let in_a_minute = Timestamp::now().as_micros() + 60_000_000;
///         Ok(Token::new(value.trim(), Timestamp::from_micros(in_a_minute)))
///     }
/// }
///
/// let config = KafkaConfig::default()
///     .with_property("security.protocol", "sasl_ssl")?
///     .with_token_provider(FromFile("/run/secrets/kafka-token".into()));
/// # Ok::<(), foldstream_kafka::KafkaConfigError>(())
/// ```
#[async_trait]
pub trait TokenProvider: Send + Sync {
    /// Returns a token that has not expired. The call may take as long as
    /// [`KafkaConfig::with_request_timeout`](crate::KafkaConfig::with_request_timeout) allows.
    ///
    /// # Errors
    /// Any error if there is no token now. Its text appears in logs, so it must not contain a
    /// secret.
    async fn token(&self) -> Result<Token, BoxError>;
}

/// The token provider of a configuration. Two are equal if they are the same value.
#[derive(Clone)]
pub(crate) struct Tokens(pub(crate) Arc<dyn TokenProvider>);

impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenProvider")
    }
}

/// The login of one client, for its context.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    tokens: Option<Tokens>,
    runtime: Option<Handle>,
    timeout: Duration,
    has_asked: Arc<AtomicBool>,
}

impl Login {
    /// Creates the login of a client that is created on a runtime or one of its blocking threads.
    pub(crate) fn new(tokens: Option<&Tokens>, timeout: Duration) -> Self {
        Self {
            tokens: tokens.cloned(),
            runtime: Handle::try_current().ok(),
            timeout,
            has_asked: Arc::default(),
        }
    }

    /// Returns the login of another client with the same provider.
    pub(crate) fn of_another_client(&self) -> Self {
        Self {
            has_asked: Arc::default(),
            ..self.clone()
        }
    }

    /// Answers librdkafka's question for a token, on the thread that serves the client's events.
    pub(crate) fn answer(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let token = self.ask();
        self.has_asked.store(true, Ordering::SeqCst);
        let token = token.inspect_err(|error| {
            let error = foldstream::chain(&**error);
            tracing::warn!(error, "no token for the login at the brokers");
        });
        // librdkafka takes the text of an error as a C string.
        let token = token.map_err(|error| foldstream::chain(&*error).replace('\0', " "))?;
        tracing::debug!(expires = %token.expires, "a token for the login at the brokers");
        Ok(OAuthToken {
            lifetime_ms: token.expires.as_micros().div_euclid(1_000),
            token: token.value,
            // Brokers take the principal from the token. This name is not sent.
            principal_name: String::new(),
        })
    }

    fn ask(&self) -> Result<Token, BoxError> {
        let Some(Tokens(provider)) = &self.tokens else {
            return Err("the brokers want tokens: use KafkaConfig::with_token_provider".into());
        };
        let runtime = self.runtime.as_ref().ok_or("there is no Tokio runtime")?;
        let ask = async { timeout(self.timeout, provider.token()).await };
        // A provider that panics must not end the thread that serves the client, and neither must
        // a runtime that is shutting down.
        match catch_unwind(AssertUnwindSafe(|| runtime.block_on(ask))) {
            Ok(Ok(answer)) => answer,
            Ok(Err(late)) => Err(late.into()),
            Err(_) => Err("the token provider panicked".into()),
        }
    }
}

/// Serves the events of a client that nobody polls until it has asked for its first token.
///
/// Without a provider, this returns at once. Blocks at most for the time of one token.
pub(crate) fn await_token<C: ConsumerContext>(client: &BaseConsumer<C>, login: &Login) {
    if login.tokens.is_none() {
        return;
    }
    let until = Instant::now() + login.timeout;
    while !login.has_asked.load(Ordering::SeqCst) && Instant::now() < until {
        let _ = client.poll(Duration::from_millis(50));
    }
}

/// Serves the events of a client on a thread of its own while the client exists, so that its token
/// is renewed while nobody uses it. Without a provider, there is no thread.
pub(crate) fn serve_while_idle<C: ConsumerContext + 'static>(
    client: &Arc<BaseConsumer<C>>,
    login: &Login,
) -> std::io::Result<()> {
    if login.tokens.is_none() {
        return Ok(());
    }
    let client = Arc::downgrade(client);
    let thread = std::thread::Builder::new().name("kafka-login".into());
    let served = thread.spawn(move || {
        while let Some(client) = client.upgrade() {
            let _ = client.poll(Duration::from_millis(200));
        }
    });
    served.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Answers(fn() -> Result<Token, BoxError>);
    #[async_trait]
    impl TokenProvider for Answers {
        async fn token(&self) -> Result<Token, BoxError> {
            (self.0)()
        }
    }

    fn login(answer: fn() -> Result<Token, BoxError>) -> Login {
        let tokens = Tokens(Arc::new(Answers(answer)));
        Login::new(Some(&tokens), Duration::from_secs(5))
    }

    async fn answer(login: Login) -> Result<(String, i64), String> {
        let answer = tokio::task::spawn_blocking(move || match login.answer() {
            Ok(token) => Ok((token.token, token.lifetime_ms)),
            Err(error) => Err(error.to_string()),
        });
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn a_token_is_passed_on_with_its_expiry_in_milliseconds() {
        let login = login(|| Ok(Token::new("t", Timestamp::from_micros(1_234_567))));
        assert_eq!(answer(login).await.unwrap(), ("t".to_owned(), 1_234));
    }

    #[tokio::test]
    async fn a_provider_that_fails_or_panics_is_an_error_without_a_nul() {
        let failing = answer(login(|| Err("a\0b".into()))).await.unwrap_err();
        assert_eq!(failing, "a b");
        let panicking = answer(login(|| panic!("broken"))).await.unwrap_err();
        assert!(panicking.contains("panicked"), "{panicking}");
        let missing = answer(Login::new(None, Duration::ZERO)).await.unwrap_err();
        assert!(missing.contains("with_token_provider"), "{missing}");
    }

    #[tokio::test]
    async fn a_provider_that_does_not_answer_in_time_is_an_error() {
        struct Never;
        #[async_trait]
        impl TokenProvider for Never {
            async fn token(&self) -> Result<Token, BoxError> {
                std::future::pending().await
            }
        }
        let login = Login::new(Some(&Tokens(Arc::new(Never))), Duration::from_millis(1));
        assert!(answer(login).await.is_err());
    }

    #[test]
    fn the_value_of_a_token_is_not_shown() {
        let token = Token::new("hunter2", Timestamp::from_micros(0));
        assert!(!format!("{token:?}").contains("hunter2"));
        let config = crate::KafkaConfig::default()
            .with_token_provider(Answers(|| Ok(Token::new("hunter2", Timestamp::now()))));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
