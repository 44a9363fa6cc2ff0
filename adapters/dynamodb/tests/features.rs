//! Builds without the default features. They are asked only for errors, so these tests need no
//! server:
//!
//! ```sh
//! cargo test -p foldstream-dynamodb --no-default-features --test features
//! cargo test -p foldstream-dynamodb --no-default-features --features tls --test features
//! ```
//!
//! With the default features, only the last test remains.
#[cfg(not(feature = "https"))]
use foldstream_dynamodb::ConfigError;
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, DynamoDbError};

/// Returns configurations of AWS and of an `https://` URL.
#[cfg(not(feature = "https"))]
fn over_tls() -> [DynamoDbConfig; 2] {
    let url = "https://dynamodb.eu-central-1.amazonaws.com";
    [
        DynamoDbConfig::default(),
        DynamoDbConfig::default().with_endpoint(url),
    ]
}

#[cfg(not(feature = "https"))]
async fn refused(config: &DynamoDbConfig) -> (ConfigError, String) {
    let error = DynamoDb::connect(config.clone()).await.unwrap_err();
    let text = error.to_string();
    let DynamoDbError::Config(error) = error else {
        panic!("{text}");
    };
    (error, text)
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn without_tls_an_https_endpoint_says_what_to_do() {
    use foldstream_dynamodb::{TableOptions, create_tables};
    for config in over_tls() {
        let (error, text) = refused(&config).await;
        assert!(matches!(error, ConfigError::HttpsDisabled { .. }), "{text}");
        assert!(
            text.contains("feature `https`") && text.contains("DYNAMODB_URL"),
            "{text}"
        );
        let made = create_tables(&config, &TableOptions::default()).await;
        assert!(made.is_err());
    }
}

#[cfg(all(feature = "tls", not(feature = "https")))]
#[tokio::test]
async fn with_tls_alone_region_and_credentials_come_from_the_configuration() {
    for config in over_tls() {
        let (error, text) = refused(&config).await;
        assert_eq!(error, ConfigError::NoRegion);
        assert!(text.contains("AWS_REGION"), "{text}");
        let (error, text) = refused(&config.with_region("eu-central-1")).await;
        assert_eq!(error, ConfigError::NoCredentials);
        assert!(
            text.contains("AWS_ACCESS_KEY_ID") && text.contains("feature `https`"),
            "{text}"
        );
    }
}

/// No server has this address. The test only shows that the build has a client that speaks TLS.
#[cfg(feature = "tls")]
#[tokio::test]
async fn with_tls_an_https_endpoint_is_connected_to() {
    use std::error::Error;
    let config = DynamoDbConfig::default()
        .with_endpoint("https://localhost:1")
        .with_region("eu-central-1")
        .with_credentials("id", "secret", None);
    let error = DynamoDb::connect(config).await.unwrap_err();
    assert!(!matches!(error, DynamoDbError::Config(_)), "{error:?}");
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    let text = texts.join(": ").to_lowercase();
    assert!(text.contains("connect"), "{text}");
}
