//! Tokens for Amazon MSK with IAM, signed with AWS credentials.
use crate::security::{Token, TokenProvider};
use async_trait::async_trait;
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use foldstream::{BoxError, Timestamp};
use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The life of a token. MSK accepts at most this.
const LIFE: Duration = Duration::from_secs(900);
/// The name of the service in the signature.
const SERVICE: &str = "kafka-cluster";
const ACTION: &str = "kafka-cluster:Connect";
/// The signed parameters, in the order in which AWS's own signers write them.
const PARAMETERS: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
];
/// The program in the brokers' logs.
const USER_AGENT: &str = concat!("foldstream-kafka/", env!("CARGO_PKG_VERSION"));

/// A [`TokenProvider`] for clusters of Amazon MSK with IAM access control, whose bootstrap address
/// has port 9098 or 9198.
///
/// A token is a signed request to connect, valid for 15 minutes or until the credentials expire.
///
/// # Example
/// ```
/// use aws_credential_types::Credentials;
/// use foldstream_kafka::{KafkaConfig, MskIam};
///
/// // In production, `SdkConfig::credentials_provider` of `aws-config`.
/// let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "example");
/// let config = KafkaConfig::default()
///     .with_brokers("b-1.example.kafka.eu-central-1.amazonaws.com:9098")
///     .with_property("security.protocol", "sasl_ssl")?
///     .with_token_provider(MskIam::new("eu-central-1", credentials));
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), foldstream_kafka::KafkaConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MskIam {
    region: String,
    credentials: SharedCredentialsProvider,
}

impl MskIam {
    /// Creates a provider of tokens for the clusters of a region.
    pub fn new(region: impl Into<String>, credentials: impl ProvideCredentials + 'static) -> Self {
        Self {
            region: region.into(),
            credentials: SharedCredentialsProvider::new(credentials),
        }
    }
}

#[async_trait]
impl TokenProvider for MskIam {
    async fn token(&self) -> Result<Token, BoxError> {
        let credentials = self.credentials.provide_credentials().await?;
        signed(&self.region, &credentials, SystemTime::now(), USER_AGENT)
    }
}

/// Signs a request to connect.
fn signed(
    region: &str,
    credentials: &Credentials,
    now: SystemTime,
    user_agent: &str,
) -> Result<Token, BoxError> {
    let url = format!(
        "https://kafka.{region}.amazonaws.com/?Action={}",
        encoded(ACTION)
    );
    let identity = credentials.clone().into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFE);
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        .settings(settings)
        .build()?
        .into();
    let no_headers = std::iter::empty();
    let request = SignableRequest::new("GET", &*url, no_headers, SignableBody::Bytes(&[]))?;
    let (instructions, _) = sign(request, &params)?.into_parts();

    let mut signed = url;
    for name in PARAMETERS {
        let found = instructions.params().iter().find(|(n, _)| *n == name);
        if let Some((name, value)) = found {
            write!(signed, "&{name}={}", encoded(value))?;
        }
    }
    write!(signed, "&User-Agent={}", encoded(user_agent))?;
    let end = now + LIFE;
    let end = credentials.expiry().map_or(end, |expiry| expiry.min(end));
    // A token counts whole seconds.
    let seconds = i64::try_from(end.duration_since(UNIX_EPOCH)?.as_secs())?;
    let expires = Timestamp::from_micros(seconds.saturating_mul(1_000_000));
    Ok(Token::new(base64_url(&signed), expires))
}

/// Encodes a value of a query by RFC 3986, as signatures demand.
fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            // Writing to a string cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

/// Encodes a text in the alphabet for URLs, without padding.
fn base64_url(text: &str) -> String {
    let standard = aws_smithy_types::base64::encode(text);
    let encoded = standard.trim_end_matches('=');
    encoded.replace('+', "-").replace('/', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: &str = "eu-central-1";
    /// 2026-11-29T02:30:00Z.
    const NOW: Duration = Duration::from_secs(1_795_919_400);
    const KEY: &str = "AKIDEXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const PYTHON: &str = "aws-msk-iam-sasl-signer-python/1.0.2";

    /// The tokens of AWS's `aws-msk-iam-sasl-signer-python` 1.0.2 (botocore 1.44.8) at `NOW`, for
    /// these credentials without and with a session token:
    /// `generate_auth_token_from_credentials_provider` with `botocore.auth.get_current_datetime`
    /// replaced by the fixed time.
    const OF_PYTHON: [(Option<&str>, &str); 2] = [
        (
            None,
            "aHR0cHM6Ly9rYWZrYS5ldS1jZW50cmFsLTEuYW1hem9uYXdzLmNvbS8_QWN0aW9uPWthZmthLWNsdXN0ZXIlM0FDb25uZWN0JlgtQW16LUFsZ29yaXRobT1BV1M0LUhNQUMtU0hBMjU2JlgtQW16LUNyZWRlbnRpYWw9QUtJREVYQU1QTEUlMkYyMDI2MTEyOSUyRmV1LWNlbnRyYWwtMSUyRmthZmthLWNsdXN0ZXIlMkZhd3M0X3JlcXVlc3QmWC1BbXotRGF0ZT0yMDI2MTEyOVQwMjMwMDBaJlgtQW16LUV4cGlyZXM9OTAwJlgtQW16LVNpZ25lZEhlYWRlcnM9aG9zdCZYLUFtei1TaWduYXR1cmU9NDI5ZjEyYmFmMzFlZGRlMjFmOGMxODdiNjNjMzhmODY3MjYzZDdlOWI0MTBhZjE5OGFlMmE2ZTBiNDExYjNmMCZVc2VyLUFnZW50PWF3cy1tc2staWFtLXNhc2wtc2lnbmVyLXB5dGhvbiUyRjEuMC4y",
        ),
        (
            Some("FwoGZXIvYXdzEBEaDP/session+token=="),
            "aHR0cHM6Ly9rYWZrYS5ldS1jZW50cmFsLTEuYW1hem9uYXdzLmNvbS8_QWN0aW9uPWthZmthLWNsdXN0ZXIlM0FDb25uZWN0JlgtQW16LUFsZ29yaXRobT1BV1M0LUhNQUMtU0hBMjU2JlgtQW16LUNyZWRlbnRpYWw9QUtJREVYQU1QTEUlMkYyMDI2MTEyOSUyRmV1LWNlbnRyYWwtMSUyRmthZmthLWNsdXN0ZXIlMkZhd3M0X3JlcXVlc3QmWC1BbXotRGF0ZT0yMDI2MTEyOVQwMjMwMDBaJlgtQW16LUV4cGlyZXM9OTAwJlgtQW16LVNpZ25lZEhlYWRlcnM9aG9zdCZYLUFtei1TZWN1cml0eS1Ub2tlbj1Gd29HWlhJdllYZHpFQkVhRFAlMkZzZXNzaW9uJTJCdG9rZW4lM0QlM0QmWC1BbXotU2lnbmF0dXJlPWMwOTgwMDNjYTBiYmFkM2ZiNGMyNGUxMzIzZmU2ZGJiYjlhNjc1YjM2ZjcwNmUyZWVlZDg4ZTgwM2Q0MDI3MTQmVXNlci1BZ2VudD1hd3MtbXNrLWlhbS1zYXNsLXNpZ25lci1weXRob24lMkYxLjAuMg",
        ),
    ];

    #[test]
    fn a_token_is_the_one_of_the_signer_of_aws() {
        for (session, expected) in OF_PYTHON {
            let credentials =
                Credentials::new(KEY, SECRET, session.map(str::to_owned), None, "test");
            let token = signed(REGION, &credentials, UNIX_EPOCH + NOW, PYTHON).unwrap();
            assert_eq!(token.value(), expected);
            assert_eq!(token.expires().as_micros(), 1_795_920_300_000_000);
        }
    }

    #[test]
    fn a_token_ends_with_the_credentials() {
        let end = UNIX_EPOCH + NOW + Duration::from_secs(60);
        let credentials = Credentials::new(KEY, SECRET, None, Some(end), "test");
        let token = signed(REGION, &credentials, UNIX_EPOCH + NOW, USER_AGENT).unwrap();
        assert_eq!(token.expires().as_micros(), 1_795_919_460_000_000);
    }

    #[tokio::test]
    async fn a_token_is_signed_now_and_shows_no_secret() {
        let provider = MskIam::new(REGION, Credentials::new(KEY, SECRET, None, None, "test"));
        let token = provider.token().await.unwrap();
        assert!(token.expires() > Timestamp::now());
        assert!(!format!("{provider:?}").contains(SECRET));
    }
}
