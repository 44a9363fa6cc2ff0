//! Configuration: which tables, where, and how the publisher hears of new commits.
use crate::Replication;
use aws_credential_types::Credentials;
use std::{env, ffi::OsString, fmt, str::FromStr, time::Duration};

/// The way in which the publisher learns of new commits. Part of the tables: every process that shares them works in the same
/// mode, and `connect` refuses one that is configured for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PublishMode {
    /// Each commit is marked as unpublished when it is written, and a poller lists the marks by the sparse index
    /// `unpublished`. Costs one write to the index when a commit is stored, and one to table and index when it is cleared.
    #[default]
    Poller,
    /// Each commit is marked as in [`PublishMode::Poller`], and the change stream tells of it too. Costs what the poller
    /// costs. Meant for the change from one mode to the other without a pause.
    Both,
    /// The table's change stream (a Lambda or a stream reader) tells; commits carry no mark, and
    /// [`EventStore::unpublished`](foldstream::ports::EventStore::unpublished) is `Refused(Unsupported)`.
    Stream,
}

impl PublishMode {
    /// Returns true if commits are marked as unpublished when they are written.
    #[must_use]
    pub const fn marks_commits(self) -> bool {
        matches!(self, Self::Poller | Self::Both)
    }
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Poller => "poller",
            Self::Both => "both",
            Self::Stream => "stream",
        }
    }
    /// The mode of this name. Unknown names are modes of later builds, or mistakes.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [Self::Poller, Self::Both, Self::Stream];
        all.into_iter().find(|mode| mode.name() == name)
    }
}
impl fmt::Display for PublishMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
impl FromStr for PublishMode {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::named(text).ok_or_else(|| ConfigError::Invalid {
            setting: "DYNAMODB_PUBLISH_MODE (publish_mode)",
            found: text.into(),
            expected: "poller, both or stream",
        })
    }
}

/// The configuration of the tables and of their use. All stores of one deployment share one.
///
/// # Example
/// ```
/// use foldstream_dynamodb::DynamoDbConfig;
/// let config = DynamoDbConfig::default().with_prefix("shop-").with_endpoint("http://localhost:8000");
/// assert_eq!(config.events_table(), "shop-events");
/// assert_eq!(config.control_table(), "shop-events-control");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct DynamoDbConfig {
    /// The name of the events table, after the prefix; the other two add `-snapshots` and `-control`. Default `events`.
    pub table_name: String,
    /// Begins the names of all three tables, so that deployments can share an account. Default: empty.
    pub prefix: String,
    /// Base URL of the service. `None` (the default) is AWS itself, which needs the cargo feature `https` (a default) or
    /// `tls`, as does every `https://` URL. `http://` is meant for emulators.
    pub endpoint: Option<String>,
    /// AWS region. `None` (the default): what the SDK finds by itself, `us-east-1` for an `http://` endpoint.
    pub region: Option<String>,
    /// The way in which the publisher learns of new commits. `None` (the default) takes what the tables say, and
    /// [`PublishMode::Poller`] for new tables. Tables of another mode are refused;
    /// [`set_publish_mode`](crate::set_publish_mode) changes theirs.
    pub publish_mode: Option<PublishMode>,
    /// The replication of the tables to other regions. Default [`Replication::Detect`].
    pub replication: Replication,
    /// Partitions of the index `streams` for each aggregate type, 1 to 1,000. Default 16. Fixed when the tables are
    /// made. More bear more *new* streams a second (about 1,000 each) and cost a query each per listing.
    pub list_shards: u32,
    /// Partitions of the index `unpublished`, 1 to 1,000. Default 16. Fixed when the tables are made. More bear more
    /// commits a second (about 500 each) and cost a query each per round of the poller.
    pub marker_shards: u32,
    /// The longest wait for one answer before a request counts as lost, and the time after the first failure in which a
    /// request may be sent again. Default 5 s. Lower settles lost answers sooner, but a slow answer then costs another
    /// request. Holds for a client of your own too, unless that has an `operation_attempt_timeout` itself.
    pub attempt_timeout: Duration,
    /// The longest wait for a connection. Default 2 s; at most nine tenths of `attempt_timeout` count, so that a connection
    /// that was never made is told apart from an answer that was lost. Of a client of your own its `connect_timeout` counts,
    /// cut in the same way: to nine tenths of its `operation_attempt_timeout`, `operation_timeout` or `read_timeout`.
    pub connect_timeout: Duration,
    /// The most requests that one call of a port sends for the same thing. Default 4; 0 counts as 1. The SDK's own retries
    /// are off, so nothing multiplies this number. A write whose answer was lost is settled by reading, and sent twice at
    /// most.
    pub max_attempts: u32,
    credentials: Option<Credentials>,
}

impl Default for DynamoDbConfig {
    fn default() -> Self {
        Self {
            table_name: "events".into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            publish_mode: None,
            replication: Replication::default(),
            list_shards: 16,
            marker_shards: 16,
            attempt_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            max_attempts: 4,
            credentials: None,
        }
    }
}

impl fmt::Debug for DynamoDbConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDbConfig")
            .field("table_name", &self.table_name)
            .field("prefix", &self.prefix)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("publish_mode", &self.publish_mode)
            .field("replication", &self.replication)
            .field("list_shards", &self.list_shards)
            .field("marker_shards", &self.marker_shards)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_attempts", &self.max_attempts)
            .field("credentials", &self.credentials.as_ref().map(|_| "***"))
            .finish()
    }
}

/// A configuration that cannot work, found before any call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is not what its setting takes.
    #[error("{setting} is {found:?}: {expected}")]
    Invalid {
        /// The environment variable and the field.
        setting: &'static str,
        /// The value that was given; never a secret.
        found: String,
        /// The values that the setting takes.
        expected: &'static str,
    },
    /// An environment variable is not Unicode.
    #[error("the environment variable {variable} is not Unicode")]
    NotUnicode {
        /// The environment variable.
        variable: &'static str,
    },
    /// A part of a pair of environment variables is missing.
    #[error("the environment variable {present} is set, but {missing} is not: set both or none")]
    HalfSet {
        /// The one that is there.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// The endpoint needs TLS, and this build has none.
    #[error(
        "{endpoint} needs HTTPS: build foldstream-dynamodb with its default features or the feature `https`, \
         or set DYNAMODB_URL (endpoint) to an http:// URL of an emulator"
    )]
    HttpsDisabled {
        /// The URL, or AWS.
        endpoint: String,
    },
    /// No region, where AWS needs one.
    #[error("no AWS region: set AWS_REGION (region)")]
    NoRegion,
    /// No credentials, where this build does not look for any: it has the cargo feature `tls` without `https`.
    #[error(
        "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or build foldstream-dynamodb with the \
         cargo feature `https`, which looks for them in profiles, containers and instances"
    )]
    NoCredentials,
}

const TABLE: &str = "EVENTSTORE_TABLE_NAME (table_name)";
const URL: &str = "DYNAMODB_URL (endpoint)";

impl DynamoDbConfig {
    /// Reads the environment; a variable that is missing or empty leaves the default.
    ///
    /// | variable | field | default |
    /// |---|---|---|
    /// | `EVENTSTORE_TABLE_NAME` | `table_name` | `events` |
    /// | `DYNAMODB_PREFIX` | `prefix` | empty |
    /// | `DYNAMODB_URL` | `endpoint` | AWS |
    /// | `AWS_REGION` | `region` | what the SDK finds |
    /// | `DYNAMODB_PUBLISH_MODE` | `publish_mode`: `poller`, `both` or `stream` | what the tables say |
    /// | `DYNAMODB_REPLICATION` | `replication`: `detect`, `none`, `single-writing-region`, `strongly-consistent` | `detect` |
    /// | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | credentials | what the SDK finds |
    ///
    /// # Errors
    /// [`ConfigError`], which names the variable.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(env::var_os)
    }

    fn from_variables(get: impl Fn(&'static str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let read = |variable: &'static str| match get(variable).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text).filter(|t| !t.is_empty())),
            Some(Err(_)) => Err(ConfigError::NotUnicode { variable }),
        };
        let mut config = Self::default();
        if let Some(name) = read("EVENTSTORE_TABLE_NAME")? {
            config.table_name = name;
        }
        if let Some(prefix) = read("DYNAMODB_PREFIX")? {
            config.prefix = prefix;
        }
        config.endpoint = read("DYNAMODB_URL")?;
        config.region = read("AWS_REGION")?;
        if let Some(mode) = read("DYNAMODB_PUBLISH_MODE")? {
            config.publish_mode = Some(mode.parse()?);
        }
        if let Some(replication) = read("DYNAMODB_REPLICATION")? {
            config.replication = replication.parse()?;
        }
        const KEY: &str = "AWS_ACCESS_KEY_ID";
        const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
        config.credentials = match (read(KEY)?, read(SECRET)?) {
            (None, None) => None,
            (Some(key), Some(secret)) => Some(Credentials::new(
                key,
                secret,
                read("AWS_SESSION_TOKEN")?,
                None,
                "environment",
            )),
            (Some(_), None) => {
                return Err(ConfigError::HalfSet {
                    present: KEY,
                    missing: SECRET,
                });
            }
            (None, Some(_)) => {
                return Err(ConfigError::HalfSet {
                    present: SECRET,
                    missing: KEY,
                });
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// Sets the name of the events table.
    #[must_use]
    pub fn with_table_name(mut self, name: impl Into<String>) -> Self {
        self.table_name = name.into();
        self
    }
    /// Sets what all table names begin with.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }
    /// Sets the base URL of the service.
    #[must_use]
    pub fn with_endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }
    /// Sets the AWS region.
    #[must_use]
    pub fn with_region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }
    /// Sets fixed credentials; without them the SDK looks for some.
    #[must_use]
    pub fn with_credentials(
        mut self,
        access_key_id: impl Into<String>,
        secret_access_key: impl Into<String>,
        session_token: Option<String>,
    ) -> Self {
        self.credentials = Some(Credentials::new(
            access_key_id,
            secret_access_key,
            session_token,
            None,
            "configuration",
        ));
        self
    }
    /// Sets the way in which the publisher learns of new commits.
    #[must_use]
    pub const fn with_publish_mode(mut self, mode: PublishMode) -> Self {
        self.publish_mode = Some(mode);
        self
    }
    /// Sets how the tables are replicated to other regions.
    #[must_use]
    pub const fn with_replication(mut self, replication: Replication) -> Self {
        self.replication = replication;
        self
    }
    /// Sets the partitions of the index `streams`.
    #[must_use]
    pub const fn with_list_shards(mut self, shards: u32) -> Self {
        self.list_shards = shards;
        self
    }
    /// Sets the partitions of the index `unpublished`.
    #[must_use]
    pub const fn with_marker_shards(mut self, shards: u32) -> Self {
        self.marker_shards = shards;
        self
    }
    /// Sets the longest wait for one answer.
    #[must_use]
    pub const fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }
    /// Sets the longest wait for a connection.
    #[must_use]
    pub const fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }
    /// Sets how often a request is sent in all.
    #[must_use]
    pub const fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Full name of the events table.
    pub fn events_table(&self) -> String {
        format!("{}{}", self.prefix, self.table_name)
    }
    /// Full name of the snapshots table.
    pub fn snapshots_table(&self) -> String {
        format!("{}{}-snapshots", self.prefix, self.table_name)
    }
    /// Full name of the control table.
    pub fn control_table(&self) -> String {
        format!("{}{}-control", self.prefix, self.table_name)
    }
    /// Returns true if commits are marked as unpublished when they are written. For a connection, whose mode is known.
    pub(crate) fn marks_commits(&self) -> bool {
        self.publish_mode.unwrap_or_default().marks_commits()
    }
    pub(crate) const fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }
    /// Returns true if the endpoint is an explicit plain HTTP one.
    pub(crate) fn is_plain_http(&self) -> bool {
        self.endpoint
            .as_deref()
            .is_some_and(|url| url.starts_with("http://"))
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the variable and the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |setting, found: String, expected| {
            Err(ConfigError::Invalid {
                setting,
                found,
                expected,
            })
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        const CHARS: &str = "table names have the characters A-Z a-z 0-9 _ . -";
        if !self.prefix.bytes().all(allowed) {
            return invalid("DYNAMODB_PREFIX (prefix)", self.prefix.clone(), CHARS);
        }
        if self.table_name.is_empty() || !self.table_name.bytes().all(allowed) {
            return invalid(TABLE, self.table_name.clone(), CHARS);
        }
        let events = self.events_table();
        if !(3..=245).contains(&events.len()) {
            return invalid(
                "DYNAMODB_PREFIX with EVENTSTORE_TABLE_NAME (prefix, table_name)",
                events,
                "both together have 3 to 245 characters (DynamoDB takes 255, with -snapshots)",
            );
        }
        if let Some(url) = &self.endpoint {
            let host = url
                .strip_prefix("http://")
                .or_else(|| url.strip_prefix("https://"));
            let is_host = |h: &str| !h.is_empty() && !h.starts_with(['/', ':', '?', '#']);
            if !host.is_some_and(is_host) || url.contains(char::is_whitespace) {
                return invalid(
                    URL,
                    without_user_info(url),
                    "a URL such as http://localhost:8000",
                );
            }
        }
        for (setting, shards) in [
            ("list_shards", self.list_shards),
            ("marker_shards", self.marker_shards),
        ] {
            if !(1..=1000).contains(&shards) {
                return invalid(setting, shards.to_string(), "1 to 1,000");
            }
        }
        for (setting, timeout) in [
            ("attempt_timeout", self.attempt_timeout),
            ("connect_timeout", self.connect_timeout),
        ] {
            if timeout.is_zero() {
                return invalid(setting, format!("{timeout:?}"), "longer than zero");
            }
        }
        Ok(())
    }
}

/// A URL may carry a password in front of an `@`; errors do not show it.
fn without_user_info(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<DynamoDbConfig, ConfigError> {
        DynamoDbConfig::from_variables(|name| {
            let found = vars.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        for vars in [
            &[][..],
            &[("DYNAMODB_URL", ""), ("EVENTSTORE_TABLE_NAME", "")],
        ] {
            let config = from(vars).unwrap();
            assert_eq!(config.events_table(), "events");
            assert_eq!(config.snapshots_table(), "events-snapshots");
            assert_eq!(config.endpoint, None);
        }
    }

    #[test]
    fn the_environment_sets_tables_endpoint_and_region() {
        let config = from(&[
            ("EVENTSTORE_TABLE_NAME", "facts"),
            ("DYNAMODB_PREFIX", "dev."),
            ("DYNAMODB_URL", "http://localhost:8000"),
            ("AWS_REGION", "eu-central-1"),
            ("DYNAMODB_PUBLISH_MODE", "both"),
            ("DYNAMODB_REPLICATION", "single-writing-region"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ])
        .unwrap();
        assert_eq!(config.control_table(), "dev.facts-control");
        assert!(config.is_plain_http());
        assert_eq!(config.region.as_deref(), Some("eu-central-1"));
        assert_eq!(config.publish_mode, Some(PublishMode::Both));
        assert_eq!(config.replication, Replication::SingleWritingRegion);
        assert!(config.credentials().is_some());
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn every_config_error_names_the_variable() {
        for (vars, named) in [
            (
                &[("EVENTSTORE_TABLE_NAME", "a b")][..],
                "EVENTSTORE_TABLE_NAME",
            ),
            (&[("EVENTSTORE_TABLE_NAME", "ab")], "EVENTSTORE_TABLE_NAME"),
            (&[("DYNAMODB_PREFIX", "ä")], "DYNAMODB_PREFIX"),
            (&[("DYNAMODB_URL", "localhost:8000")], "DYNAMODB_URL"),
            (&[("DYNAMODB_URL", "http://:8000")], "DYNAMODB_URL"),
            (&[("DYNAMODB_REPLICATION", "yes")], "DYNAMODB_REPLICATION"),
            (
                &[("DYNAMODB_PUBLISH_MODE", "push")],
                "DYNAMODB_PUBLISH_MODE",
            ),
            (&[("AWS_ACCESS_KEY_ID", "x")], "AWS_SECRET_ACCESS_KEY"),
            (&[("AWS_SECRET_ACCESS_KEY", "x")], "AWS_ACCESS_KEY_ID"),
        ] {
            let error = from(vars).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let error = DynamoDbConfig::from_variables(|name| {
            (name == "AWS_REGION").then(|| OsString::from_vec(vec![0xff]))
        });
        let variable = "AWS_REGION";
        assert_eq!(error.unwrap_err(), ConfigError::NotUnicode { variable });
    }

    #[test]
    fn shard_counts_and_timeouts_out_of_range_name_the_field() {
        let config = DynamoDbConfig::default();
        for (bad, field) in [
            (config.clone().with_list_shards(0), "list_shards"),
            (config.clone().with_marker_shards(1001), "marker_shards"),
            (
                config.with_attempt_timeout(Duration::ZERO),
                "attempt_timeout",
            ),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(field));
        }
    }
}
