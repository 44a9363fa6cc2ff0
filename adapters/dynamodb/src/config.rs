//! Configuration: the tables, their location, and the way in which the publisher learns of commits.
use crate::Replication;
use aws_credential_types::Credentials;
use std::{env, ffi::OsString, fmt, str::FromStr, time::Duration};

/// The way in which the publisher learns of new commits.
///
/// The mode belongs to the tables. All processes that share them work in the same mode, and
/// `connect` refuses a process that is configured for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PublishMode {
    /// Gives each commit a marker when it is stored. A poller lists the markers in the sparse
    /// index `unpublished`.
    ///
    /// Costs one write to the index when a commit is stored, and one write to table and index when
    /// its marker is cleared. Intended for development and small loads.
    Poller,
    /// Gives each commit a marker as [`PublishMode::Poller`] does, while the change stream
    /// reports it too.
    ///
    /// Costs as much as [`PublishMode::Poller`]. Intended for a change from one mode to the other
    /// without a pause.
    Both,
    /// Leaves commits unmarked, and reports them by the table's change stream, which a Lambda or a
    /// stream reader consumes.
    ///
    /// In this mode [`EventStore::unpublished`](foldstream::ports::EventStore::unpublished) is
    /// `Refused(Unsupported)`.
    #[default]
    Stream,
}

impl PublishMode {
    /// Returns true if commits get a marker when they are stored.
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
    /// Returns the mode of this name. `None` for a mode of a later build and for a misspelled name.
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
    /// The name of the events table, after the prefix. The other two tables add `-snapshots` and
    /// `-control` to it. Default: `events`.
    pub table_name: String,
    /// The start of the names of all three tables, so that deployments can share an account.
    /// Default: empty.
    pub prefix: String,
    /// The base URL of the service. `None` (the default) is AWS.
    ///
    /// AWS and any `https://` URL need the cargo feature `https` (a default) or `tls`. An `http://`
    /// URL is meant for emulators.
    pub endpoint: Option<String>,
    /// The AWS region. `None` (the default) uses the region that the SDK finds, or `us-east-1` for
    /// an `http://` endpoint.
    pub region: Option<String>,
    /// The way in which the publisher learns of new commits. `None` (the default) uses the mode of
    /// existing tables, and [`PublishMode::Stream`] for new ones.
    ///
    /// Tables of another mode are refused. [`set_publish_mode`](crate::set_publish_mode) changes
    /// the mode of tables.
    pub publish_mode: Option<PublishMode>,
    /// The replication of the tables to other regions. Default: [`Replication::Detect`].
    pub replication: Replication,
    /// The number of partitions of the index `streams` per aggregate type, 1 to 1,000. Default: 16.
    /// Fixed when the tables are created.
    ///
    /// Each partition takes about 1,000 *new* streams per second, and costs one query per listing.
    pub list_shards: u32,
    /// The number of partitions of the index `unpublished`, 1 to 1,000. Default: 16. Fixed when the
    /// tables are created.
    ///
    /// Each partition takes about 500 commits per second, and costs one query per round of the
    /// poller.
    pub marker_shards: u32,
    /// The longest wait for an answer before a request counts as lost, and the time after a first
    /// failure in which the request may be sent again. Default: 5 s. Must not be zero.
    ///
    /// A lower value resolves lost answers sooner, but a slow answer then costs another request.
    /// Also applies to the caller's own client, unless that client has an
    /// `operation_attempt_timeout`.
    pub attempt_timeout: Duration,
    /// The longest wait for a connection. Default: 2 s. Must not be zero.
    ///
    /// The wait is cut to nine tenths of `attempt_timeout`, so that a connection that was never
    /// established can be told apart from a lost answer. The caller's own client keeps its
    /// `connect_timeout`, cut to nine tenths of its `operation_attempt_timeout`,
    /// `operation_timeout` or `read_timeout`.
    pub connect_timeout: Duration,
    /// The most requests that one call of a port sends for the same purpose. Default: 4. 0 counts
    /// as 1.
    ///
    /// The SDK's own retries are off, so nothing multiplies this number. An append whose answer was
    /// lost is resolved by reading, and is sent at most twice.
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

/// The error of a configuration that cannot work, found before any request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting has a value that it does not accept.
    #[error("{setting} is {found:?}: {expected}")]
    Invalid {
        /// The names of the environment variable and of the field.
        setting: &'static str,
        /// The value that was given, which is never a secret.
        found: String,
        /// The values that the setting accepts.
        expected: &'static str,
    },
    /// The value of an environment variable is not Unicode.
    #[error("the environment variable {variable} is not Unicode")]
    NotUnicode {
        /// The name of the environment variable.
        variable: &'static str,
    },
    /// One of two environment variables that belong together is missing.
    #[error("the environment variable {present} is set, but {missing} is not: set both or none")]
    HalfSet {
        /// The name of the variable that is set.
        present: &'static str,
        /// The name of the variable that is not set.
        missing: &'static str,
    },
    /// The endpoint needs TLS, and this build does not include it.
    #[error(
        "{endpoint} needs HTTPS: build foldstream-dynamodb with its default features or the feature `https`, \
         or set DYNAMODB_URL (endpoint) to an http:// URL of an emulator"
    )]
    HttpsDisabled {
        /// The URL of the endpoint, or a name for AWS.
        endpoint: String,
    },
    /// The region is missing, and AWS needs one.
    #[error("no AWS region: set AWS_REGION (region)")]
    NoRegion,
    /// The credentials are missing, and this build does not search for any: it has the cargo
    /// feature `tls` without `https`.
    #[error(
        "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or build foldstream-dynamodb with the \
         cargo feature `https`, which looks for them in profiles, containers and instances"
    )]
    NoCredentials,
}

const TABLE: &str = "EVENTSTORE_TABLE_NAME (table_name)";
const URL: &str = "DYNAMODB_URL (endpoint)";

impl DynamoDbConfig {
    /// Reads the configuration from the environment. A variable that is missing or empty leaves the
    /// default.
    ///
    /// | variable | field | default |
    /// |---|---|---|
    /// | `EVENTSTORE_TABLE_NAME` | `table_name` | `events` |
    /// | `DYNAMODB_PREFIX` | `prefix` | empty |
    /// | `DYNAMODB_URL` | `endpoint` | AWS |
    /// | `AWS_REGION` | `region` | what the SDK finds |
    /// | `DYNAMODB_PUBLISH_MODE` | `publish_mode` | the mode of the tables |
    /// | `DYNAMODB_REPLICATION` | `replication` | `detect` |
    /// | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | credentials | what the SDK finds |
    ///
    /// The publish modes are `poller`, `both` and `stream`. The kinds of replication are `detect`,
    /// `none`, `single-writing-region` and `strongly-consistent`.
    ///
    /// # Errors
    /// [`ConfigError`], which names the variable:
    /// - `Invalid` if a value is not accepted,
    /// - `NotUnicode` if a value is not Unicode,
    /// - `HalfSet` if only one of access key id and secret access key is set.
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
    /// Sets the start of all table names.
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
    /// Sets the AWS region of the tables.
    #[must_use]
    pub fn with_region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }
    /// Sets fixed credentials. Without them the SDK searches for some.
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
    /// Sets the replication of the tables to other regions.
    #[must_use]
    pub const fn with_replication(mut self, replication: Replication) -> Self {
        self.replication = replication;
        self
    }
    /// Sets the number of partitions of the index `streams`.
    #[must_use]
    pub const fn with_list_shards(mut self, shards: u32) -> Self {
        self.list_shards = shards;
        self
    }
    /// Sets the number of partitions of the index `unpublished`.
    #[must_use]
    pub const fn with_marker_shards(mut self, shards: u32) -> Self {
        self.marker_shards = shards;
        self
    }
    /// Sets the longest wait for an answer.
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
    /// Sets the most requests that one call sends for the same purpose.
    #[must_use]
    pub const fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Returns the full name of the events table.
    pub fn events_table(&self) -> String {
        format!("{}{}", self.prefix, self.table_name)
    }
    /// Returns the full name of the snapshots table.
    pub fn snapshots_table(&self) -> String {
        format!("{}{}-snapshots", self.prefix, self.table_name)
    }
    /// Returns the full name of the control table.
    pub fn control_table(&self) -> String {
        format!("{}{}-control", self.prefix, self.table_name)
    }
    /// Returns the full name of the table that read models share.
    pub fn read_models_table(&self) -> String {
        format!("{}{}-models", self.prefix, self.table_name)
    }
    /// Returns true if commits get a marker when they are stored. Only meaningful
    /// after a connection has set the mode.
    pub(crate) fn marks_commits(&self) -> bool {
        self.publish_mode.unwrap_or_default().marks_commits()
    }
    pub(crate) const fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }
    /// Returns true if the endpoint is set to a plain HTTP URL.
    pub(crate) fn is_plain_http(&self) -> bool {
        self.endpoint
            .as_deref()
            .is_some_and(|url| url.starts_with("http://"))
    }

    /// Checks the value of every field.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if a field has a value that it does not accept. The error names the
    /// variable and the field.
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

/// Returns a URL without the part before its `@`, which may hold a password.
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
