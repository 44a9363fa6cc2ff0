//! The configuration of the function, from its environment.
use crate::handler::Handler;
use foldstream::{
    SourceUri,
    publisher::{Publisher, TopicRoute},
};
use foldstream_dynamodb::{ConfigError, DynamoDb, DynamoDbConfig, DynamoDbError};
use foldstream_kafka::{KafkaConfig, KafkaConfigError, KafkaMessageBus};
use std::{collections::BTreeMap, env, ffi::OsString, time::Duration};

/// The configuration of the function.
///
/// # Example
/// ```no_run
/// # async fn example() -> Result<(), foldstream::BoxError> {
/// use foldstream_lambda::{LambdaConfig, run};
///
/// // A function of your own: with an outbox, say.
/// let config = LambdaConfig::from_env()?;
/// let (publisher, bus) = config.connect().await?;
/// run(config.handler(publisher, bus)).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LambdaConfig {
    dynamodb: DynamoDbConfig,
    kafka: KafkaConfig,
    route: TopicRoute,
    source: SourceUri,
    concurrency: usize,
    max_age: Duration,
    max_behind: u64,
    freeze: Duration,
}

/// The error of a configuration that cannot work, found before any connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LambdaConfigError {
    /// A variable that has no default is not set.
    #[error("the environment variable {variable} is not set: {expected}")]
    Missing {
        /// The name of the variable.
        variable: &'static str,
        /// The values that the variable accepts.
        expected: &'static str,
    },
    /// A variable has a value that is not accepted. The value may be a secret, and is not shown.
    #[error("the environment variable {variable} is not valid: {expected}")]
    Invalid {
        /// The name of the variable.
        variable: &'static str,
        /// The values that the variable accepts.
        expected: &'static str,
    },
    /// The settings of DynamoDB are not accepted.
    #[error("the settings of DynamoDB are not valid")]
    DynamoDb(#[from] ConfigError),
    /// The settings of Kafka are not accepted.
    #[error("the settings of Kafka are not valid")]
    Kafka(#[from] KafkaConfigError),
}

/// The error returned if the function cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The tables cannot be used.
    #[error("the tables cannot be used")]
    DynamoDb(#[from] DynamoDbError),
    /// The settings of Kafka are not accepted.
    #[error("the settings of Kafka are not valid")]
    Kafka(#[from] KafkaConfigError),
}

const BROKERS: &str = "KAFKA_BROKERS";
const SECONDS: &str = "a whole number of seconds, at least 1";

impl LambdaConfig {
    /// The time in which a partition must acknowledge something. It is shorter than that of a
    /// service, since an invocation has to end.
    const PUBLISH_TIMEOUT: u64 = 10;

    /// Reads the configuration from the environment. A variable that is missing or empty leaves the
    /// default, but an empty `KAFKA_TOPIC_PREFIX` is an empty prefix.
    ///
    /// | variable | meaning | default |
    /// |---|---|---|
    /// | those of [`DynamoDbConfig::from_env`] | the tables | |
    /// | `KAFKA_BROKERS` | the brokers, as `host:port`, several with commas | none |
    /// | `KAFKA_CLIENT_ID` | the name in logs, metrics and quotas of the brokers | `foldstream` |
    /// | `KAFKA_EVENTS_TOPIC` | the topic of all events | `GlobalEvents` |
    /// | `KAFKA_TOPIC_PREFIX` | if set, each aggregate type has a topic of its own, `<prefix><aggregate type>` | not set |
    /// | `KAFKA_SECURITY_PROTOCOL` | `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl` | `plaintext` |
    /// | `KAFKA_SASL_MECHANISM` | `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `AWS_MSK_IAM` | none |
    /// | `KAFKA_SASL_USERNAME`, `KAFKA_SASL_PASSWORD` | the login | none |
    /// | `KAFKA_PROPERTIES` | other properties of librdkafka, as a JSON object of strings | `{}` |
    /// | `KAFKA_PUBLISH_TIMEOUT` | the longest time, in seconds, in which a partition acknowledges nothing | 10 |
    /// | `FOLDSTREAM_SOURCE` | the CloudEvents source of all records | `urn:foldstream` |
    /// | `FOLDSTREAM_CONCURRENCY` | the streams that are published at the same time | 32 |
    /// | `FOLDSTREAM_MAX_AGE` | the age of a record, in seconds, after which its stream is left to the sweep | 21600 |
    /// | `FOLDSTREAM_MAX_BEHIND` | the backlog, in events, after which a stream is left to the sweep | 1000 |
    /// | `FOLDSTREAM_FREEZE` | the pause between invocations, in seconds, after which the brokers are connected again | 30 |
    ///
    /// # Errors
    /// [`LambdaConfigError`] if a variable has a value that is not accepted, or if the brokers are
    /// missing. The error names the variable, and never shows a secret.
    pub fn from_env() -> Result<Self, LambdaConfigError> {
        let (dynamodb, kafka) = (DynamoDbConfig::from_env()?, KafkaConfig::from_env()?);
        Self::from_parts(dynamodb, kafka, env::var_os)
    }

    fn from_parts(
        dynamodb: DynamoDbConfig,
        kafka: KafkaConfig,
        get: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Self, LambdaConfigError> {
        let environment = Environment(get);
        environment
            .text(BROKERS)?
            .ok_or(LambdaConfigError::Missing {
                variable: BROKERS,
                expected: "host:port, several with commas",
            })?;
        let route = match environment.raw("KAFKA_TOPIC_PREFIX")? {
            Some(prefix) => TopicRoute::ByAggregate { prefix },
            None => TopicRoute::One(kafka.events_topic().into()),
        };
        let source = match environment.text("FOLDSTREAM_SOURCE")? {
            None => SourceUri::default(),
            Some(uri) => uri.parse().map_err(|_| LambdaConfigError::Invalid {
                variable: "FOLDSTREAM_SOURCE",
                expected: "a URI reference, such as urn:shop",
            })?,
        };
        let concurrency = "FOLDSTREAM_CONCURRENCY";
        let concurrency = environment.number(concurrency, 1, "a number of streams, at least 1")?;
        let max_age = environment.number("FOLDSTREAM_MAX_AGE", 1, SECONDS)?;
        let max_behind = environment.number("FOLDSTREAM_MAX_BEHIND", 0, "a number of events")?;
        let freeze = environment.number("FOLDSTREAM_FREEZE", 1, SECONDS)?;
        Ok(Self {
            kafka: environment.kafka(kafka)?,
            dynamodb,
            route,
            source,
            concurrency: concurrency.map_or(32, |n| usize::try_from(n).unwrap_or(usize::MAX)),
            max_age: max_age.map_or(Handler::MAX_AGE, Duration::from_secs),
            max_behind: max_behind.unwrap_or(Handler::MAX_BEHIND),
            freeze: freeze.map_or(Handler::FREEZE, Duration::from_secs),
        })
    }

    /// Connects to the tables, and creates the publisher and the bus that it uses.
    ///
    /// # Errors
    /// [`StartError`] if the tables cannot be used, or if the settings of Kafka are not accepted.
    /// The brokers are asked by the first invocation.
    pub async fn connect(&self) -> Result<(Publisher, KafkaMessageBus), StartError> {
        let bus = KafkaMessageBus::new(self.kafka.clone())?;
        let tables = DynamoDb::connect(self.dynamodb.clone()).await?;
        let publisher = Publisher::new(tables.event_store(), bus.clone(), tables.control_store())
            .with_route(self.route.clone())
            .with_source(self.source.clone())
            .with_concurrency(self.concurrency);
        Ok((publisher, bus))
    }

    /// Creates the handler of a publisher, with the limits of this configuration.
    pub fn handler(&self, publisher: Publisher, bus: KafkaMessageBus) -> Handler {
        Handler::new(publisher, bus)
            .with_max_age(self.max_age)
            .with_max_behind(self.max_behind)
            .with_freeze(self.freeze)
    }
}

/// The variables of an environment.
struct Environment<F>(F);

impl<F: Fn(&'static str) -> Option<OsString>> Environment<F> {
    /// Returns a variable, which may be empty.
    fn raw(&self, variable: &'static str) -> Result<Option<String>, LambdaConfigError> {
        let value = (self.0)(variable).map(OsString::into_string);
        value.transpose().map_err(|_| LambdaConfigError::Invalid {
            variable,
            expected: "UTF-8",
        })
    }

    fn text(&self, variable: &'static str) -> Result<Option<String>, LambdaConfigError> {
        Ok(self.raw(variable)?.filter(|text| !text.is_empty()))
    }

    fn number(
        &self,
        variable: &'static str,
        least: u64,
        expected: &'static str,
    ) -> Result<Option<u64>, LambdaConfigError> {
        let Some(text) = self.text(variable)? else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| *number >= least);
        let invalid = LambdaConfigError::Invalid { variable, expected };
        number.ok_or(invalid).map(Some)
    }

    fn kafka(&self, mut kafka: KafkaConfig) -> Result<KafkaConfig, LambdaConfigError> {
        let timeout = self.number("KAFKA_PUBLISH_TIMEOUT", 1, SECONDS)?;
        let timeout = timeout.unwrap_or(LambdaConfig::PUBLISH_TIMEOUT);
        kafka = kafka.with_publish_timeout(Duration::from_secs(timeout));
        let properties = "KAFKA_PROPERTIES";
        if let Some(json) = self.text(properties)? {
            let read = serde_json::from_str::<BTreeMap<String, String>>(&json);
            let read = read.map_err(|_| LambdaConfigError::Invalid {
                variable: properties,
                expected: "a JSON object whose values are strings",
            })?;
            for (name, value) in read {
                kafka = kafka.with_property(name, value)?;
            }
        }
        for (variable, property) in [
            ("KAFKA_SECURITY_PROTOCOL", "security.protocol"),
            ("KAFKA_SASL_USERNAME", "sasl.username"),
            ("KAFKA_SASL_PASSWORD", "sasl.password"),
        ] {
            if let Some(value) = self.text(variable)? {
                kafka = kafka.with_property(property, value)?;
            }
        }
        match self.text(MECHANISM)?.as_deref() {
            None => Ok(kafka),
            Some("AWS_MSK_IAM") => self.msk_iam(kafka),
            Some(mechanism) => Ok(kafka.with_property("sasl.mechanism", mechanism)?),
        }
    }

    #[cfg(feature = "msk-iam")]
    fn msk_iam(&self, kafka: KafkaConfig) -> Result<KafkaConfig, LambdaConfigError> {
        let required = |variable| {
            let expected = "Lambda sets it; elsewhere, set it to use AWS_MSK_IAM";
            let missing = LambdaConfigError::Missing { variable, expected };
            self.text(variable)?.ok_or(missing)
        };
        // Lambda replaces a function's environment before its credentials expire.
        let credentials = aws_credential_types::Credentials::new(
            required("AWS_ACCESS_KEY_ID")?,
            required("AWS_SECRET_ACCESS_KEY")?,
            self.text("AWS_SESSION_TOKEN")?,
            None,
            "environment",
        );
        let region = required("AWS_REGION")?;
        Ok(kafka.with_token_provider(foldstream_kafka::MskIam::new(region, credentials)))
    }

    #[cfg(not(feature = "msk-iam"))]
    fn msk_iam(&self, _: KafkaConfig) -> Result<KafkaConfig, LambdaConfigError> {
        Err(LambdaConfigError::Invalid {
            variable: MECHANISM,
            expected: "AWS_MSK_IAM needs a build with the cargo feature `msk-iam`",
        })
    }
}

const MECHANISM: &str = "KAFKA_SASL_MECHANISM";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<LambdaConfig, LambdaConfigError> {
        let brokers = [("KAFKA_BROKERS", "kafka:9092")];
        let all: BTreeMap<&str, &str> = brokers.iter().chain(variables).copied().collect();
        let (dynamodb, kafka) = (DynamoDbConfig::default(), KafkaConfig::default());
        LambdaConfig::from_parts(dynamodb, kafka, |variable| {
            all.get(variable).map(OsString::from)
        })
    }

    #[test]
    fn the_documented_defaults_hold() {
        let config = read(&[]).unwrap();
        assert_eq!(config.route, TopicRoute::One("GlobalEvents".into()));
        assert_eq!((config.concurrency, config.max_behind), (32, 1_000));
        assert_eq!(config.max_age, Duration::from_secs(21_600));
        assert_eq!(config.source, SourceUri::default());
        let kafka = KafkaConfig::default().with_publish_timeout(Duration::from_secs(10));
        assert_eq!(config.kafka, kafka);
    }

    #[test]
    fn every_variable_is_used() {
        let config = read(&[
            ("KAFKA_TOPIC_PREFIX", ""),
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
            ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
            ("KAFKA_SASL_USERNAME", "shop"),
            ("KAFKA_SASL_PASSWORD", "tiger"),
            ("KAFKA_PROPERTIES", r#"{"compression.type": "lz4"}"#),
            ("KAFKA_PUBLISH_TIMEOUT", "5"),
            ("FOLDSTREAM_SOURCE", "urn:shop"),
            ("FOLDSTREAM_CONCURRENCY", "7"),
            ("FOLDSTREAM_MAX_AGE", "60"),
            ("FOLDSTREAM_MAX_BEHIND", "0"),
            ("FOLDSTREAM_FREEZE", "2"),
        ])
        .unwrap();
        let prefix = String::new();
        assert_eq!(config.route, TopicRoute::ByAggregate { prefix });
        assert_eq!((config.concurrency, config.max_behind), (7, 0));
        assert_eq!(config.max_age, Duration::from_secs(60));
        assert_eq!(config.freeze, Duration::from_secs(2));
        assert_eq!(config.source.as_str(), "urn:shop");
        let mut kafka = KafkaConfig::default().with_publish_timeout(Duration::from_secs(5));
        for (name, value) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "shop"),
            ("sasl.password", "tiger"),
            ("compression.type", "lz4"),
        ] {
            kafka = kafka.with_property(name, value).unwrap();
        }
        assert_eq!(config.kafka, kafka);
        assert!(!format!("{config:?}").contains("tiger"));
    }

    #[test]
    fn a_wrong_variable_is_named_and_its_value_is_not_shown() {
        for (variable, value) in [
            ("KAFKA_BROKERS", ""),
            ("KAFKA_PROPERTIES", "secret"),
            ("KAFKA_PROPERTIES", r#"{"a": 1}"#),
            ("KAFKA_PUBLISH_TIMEOUT", "0"),
            ("FOLDSTREAM_SOURCE", "a b"),
            ("FOLDSTREAM_CONCURRENCY", "0"),
            ("FOLDSTREAM_MAX_AGE", "6h"),
            ("FOLDSTREAM_MAX_BEHIND", "-1"),
            ("FOLDSTREAM_FREEZE", "0"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err();
            let text = foldstream::chain(&error).to_string();
            assert!(text.contains(variable), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        let protected = [("KAFKA_PROPERTIES", r#"{"acks": "1"}"#)];
        let error = read(&protected).unwrap_err();
        assert!(matches!(error, LambdaConfigError::Kafka(_)), "{error}");
    }

    #[cfg(feature = "msk-iam")]
    #[test]
    fn msk_iam_signs_with_the_credentials_of_the_function() {
        let mechanism = (MECHANISM, "AWS_MSK_IAM");
        let error = read(&[mechanism]).unwrap_err();
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
        let config = read(&[
            mechanism,
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "tiger"),
            ("AWS_REGION", "eu-central-1"),
        ]);
        assert!(!format!("{:?}", config.unwrap()).contains("tiger"));
    }

    #[cfg(not(feature = "msk-iam"))]
    #[test]
    fn msk_iam_without_its_feature_is_an_error_that_says_so() {
        let error = read(&[(MECHANISM, "AWS_MSK_IAM")]).unwrap_err();
        assert!(error.to_string().contains("msk-iam"), "{error}");
    }
}
