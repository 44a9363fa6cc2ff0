//! A broker that asks for logins, with certificates that are made for it.
use super::with;
use crate::kafka::config;
use foldstream::ports::MessageBus as _;
use foldstream_kafka::{KafkaConfig, KafkaMessageBus, TopicSpec};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub(super) const USER: &str = "shop";
pub(super) const PASSWORD: &str = "swordfish";

/// The listeners, by their names and protocols.
const LISTENERS: [(&str, &str); 4] = [
    ("PLAIN", "PLAINTEXT"),
    ("TLS", "SSL"),
    ("SCRAM", "SASL_SSL"),
    ("BEARER", "SASL_PLAINTEXT"),
];

/// A node in a container, which is removed with this value.
pub(super) struct Broker {
    container: String,
    files: TempDir,
    host: String,
    ports: [u16; 4],
}

impl Drop for Broker {
    fn drop(&mut self) {
        let mut remove = Command::new("docker");
        remove.args(["rm", "-fv", &self.container]);
        let _ = remove.stdout(Stdio::null()).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {failed}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Broker {
    pub(super) async fn start() -> Self {
        // The address at which this machine reaches the ports of containers.
        let shared = config().await;
        let (host, _) = shared.brokers().rsplit_once(':').unwrap();
        let files = tempfile::tempdir().unwrap();
        make_certificates(&files, host);
        let free = LISTENERS.map(|_| TcpListener::bind("0.0.0.0:0").unwrap());
        let ports = free.map(|free| free.local_addr().unwrap().port());
        let broker = Self {
            container: run_container(&files, host, ports),
            files,
            host: host.to_owned(),
            ports,
        };
        let plain = KafkaMessageBus::new(broker.at("PLAIN")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while let Err(error) = plain.create_topic(&TopicSpec::new("ready", 1)).await {
            assert!(Instant::now() < deadline, "{error:?}");
            sleep(Duration::from_millis(200)).await;
        }
        broker.create_user();
        broker.await_user().await;
        broker
    }

    /// Returns a configuration for one of the listeners.
    pub(super) fn at(&self, listener: &str) -> KafkaConfig {
        let at = LISTENERS.iter().position(|(name, _)| *name == listener);
        let (port, (_, protocol)) = (self.ports[at.unwrap()], LISTENERS[at.unwrap()]);
        KafkaConfig::default()
            .with_brokers(format!("{}:{port}", self.host))
            .with_request_timeout(Duration::from_secs(10))
            .with_property("security.protocol", protocol.to_lowercase())
            .unwrap()
    }

    /// Returns a configuration that logs in with a password.
    pub(super) fn with_password(&self, password: &str) -> KafkaConfig {
        let properties = [
            ("ssl.ca.location", &*self.file("ca.pem")),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", USER),
            ("sasl.password", password),
        ];
        with(self.at("SCRAM"), &properties)
    }

    /// Waits until the broker knows its user, which it learns from the controller a moment later.
    async fn await_user(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let bus = KafkaMessageBus::new(self.with_password(PASSWORD)).unwrap();
            let Err(error) = bus.offsets("ready").await else {
                return;
            };
            assert!(Instant::now() < deadline, "{error:?}");
        }
    }

    pub(super) fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    fn create_user(&self) {
        let address = format!("localhost:{}", self.ports[0]);
        let password = format!("SCRAM-SHA-512=[iterations=4096,password={PASSWORD}]");
        // The official image has its jars in `libs`.
        let jars = "/opt/kafka/lib/*:/opt/kafka/libs/*";
        run(
            "docker",
            &[
                "exec",
                &self.container,
                "java",
                "-cp",
                jars,
                "kafka.admin.ConfigCommand",
                "--bootstrap-server",
                &address,
                "--alter",
                "--entity-type",
                "users",
                "--entity-name",
                USER,
                "--add-config",
                &password,
            ],
        );
    }
}

fn run_container(files: &TempDir, host: &str, ports: [u16; 4]) -> String {
    let image = std::env::var("FOLDSTREAM_KAFKA_IMAGE");
    let image = image.unwrap_or_else(|_| "apache/kafka:4.1.1".into());
    let list = |of: &dyn Fn(&str, &str, u16) -> String| {
        let each = LISTENERS.iter().zip(ports);
        let each: Vec<_> = each
            .map(|((name, protocol), port)| of(name, protocol, port))
            .collect();
        each.join(",")
    };
    let listeners = list(&|name, _, port| format!("{name}://0.0.0.0:{port}"));
    let advertised = list(&|name, _, port| format!("{name}://{host}:{port}"));
    let protocols = list(&|name, protocol, _| format!("{name}:{protocol}"));
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                  unsecuredLoginStringClaim_sub=\"broker\";";
    // A dot is an underscore here, and a hyphen is three of them.
    let settings = [
        ("NODE_ID", "1"),
        ("PROCESS_ROLES", "broker,controller"),
        ("CONTROLLER_QUORUM_VOTERS", "1@localhost:9093"),
        ("CONTROLLER_LISTENER_NAMES", "CONTROLLER"),
        ("INTER_BROKER_LISTENER_NAME", "PLAIN"),
        ("LISTENERS", &format!("CONTROLLER://:9093,{listeners}")),
        ("ADVERTISED_LISTENERS", &advertised),
        (
            "LISTENER_SECURITY_PROTOCOL_MAP",
            &format!("CONTROLLER:PLAINTEXT,{protocols}"),
        ),
        ("OFFSETS_TOPIC_REPLICATION_FACTOR", "1"),
        ("OFFSETS_TOPIC_NUM_PARTITIONS", "3"),
        ("GROUP_INITIAL_REBALANCE_DELAY_MS", "0"),
        ("AUTO_CREATE_TOPICS_ENABLE", "false"),
        ("SSL_KEYSTORE_TYPE", "PEM"),
        ("SSL_KEYSTORE_LOCATION", "/certificates/broker.pem"),
        ("SSL_TRUSTSTORE_TYPE", "PEM"),
        ("SSL_TRUSTSTORE_LOCATION", "/certificates/ca.pem"),
        ("LISTENER_NAME_TLS_SSL_CLIENT_AUTH", "required"),
        (
            "LISTENER_NAME_SCRAM_SASL_ENABLED_MECHANISMS",
            "SCRAM-SHA-512",
        ),
        (
            "LISTENER_NAME_SCRAM_SCRAM___SHA___512_SASL_JAAS_CONFIG",
            scram,
        ),
        (
            "LISTENER_NAME_BEARER_SASL_ENABLED_MECHANISMS",
            "OAUTHBEARER",
        ),
        ("LISTENER_NAME_BEARER_OAUTHBEARER_SASL_JAAS_CONFIG", bearer),
        // A connection must log in again before its token expires.
        (
            "LISTENER_NAME_BEARER_OAUTHBEARER_CONNECTIONS_MAX_REAUTH_MS",
            "60000",
        ),
    ];
    let mut arguments: Vec<String> = ["run", "-d", "--label"].map(str::to_owned).into();
    arguments.push("org.testcontainers.managed-by=testcontainers".into());
    if let Ok(run) = std::env::var("FOLDSTREAM_RUN") {
        arguments.extend(["--label".into(), format!("foldstream.run={run}")]);
    }
    let mount = format!("{}:/certificates:ro", files.path().display());
    arguments.extend(["-v".into(), mount]);
    for port in ports {
        arguments.extend(["-p".into(), format!("{port}:{port}")]);
    }
    for (name, value) in settings {
        arguments.extend(["-e".into(), format!("KAFKA_{name}={value}")]);
    }
    arguments.push(image);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("docker", &arguments)
}

/// Makes an authority with certificates for the broker and for a client, and another authority that
/// the broker does not belong to.
fn make_certificates(files: &TempDir, host: &str) {
    // The user of the container must be able to read them.
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| -> PathBuf { files.path().join(name) };
    let file = |name: &str| path(name).to_str().unwrap().to_owned();
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let openssl = |arguments: &[&str]| run("openssl", arguments);
    for authority in ["ca", "stranger"] {
        let (secret, certificate) = (
            file(&format!("{authority}.key")),
            file(&format!("{authority}.pem")),
        );
        let subject = format!("/CN={authority}");
        let mut arguments = vec!["req", "-x509", "-days", "1", "-subj", &subject];
        arguments.extend(key);
        arguments.extend(["-keyout", &secret, "-out", &certificate]);
        openssl(&arguments);
    }
    let kind = if host.parse::<std::net::IpAddr>().is_ok() {
        "IP"
    } else {
        "DNS"
    };
    fs::write(path("names"), format!("subjectAltName={kind}:{host}\n")).unwrap();
    let (ca, ca_key, names) = (file("ca.pem"), file("ca.key"), file("names"));
    for owner in ["broker", USER] {
        let (secret, wish) = (file(&format!("{owner}.key")), file(&format!("{owner}.csr")));
        let certificate = file(&format!("{owner}.crt"));
        let subject = format!("/CN={owner}");
        let mut arguments = vec!["req", "-subj", &subject];
        arguments.extend(key);
        arguments.extend(["-keyout", &secret, "-out", &wish]);
        openssl(&arguments);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &wish,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            &names,
            "-out",
            &certificate,
        ]);
    }
    let parts = ["broker.key", "broker.crt"].map(|name| fs::read_to_string(path(name)).unwrap());
    fs::write(path("broker.pem"), parts.concat()).unwrap();
    for name in ["broker.pem", "ca.pem"] {
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
}
