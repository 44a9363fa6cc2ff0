//! The start of containers, the wait until they are ready, and the runtime that drives them.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use testcontainers_modules::testcontainers::bollard::errors::Error as DockerError;
use testcontainers_modules::testcontainers::core::ContainerPort;
use testcontainers_modules::testcontainers::core::error::ClientError;
use testcontainers_modules::testcontainers::core::logs::LogFrame;
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{
    ContainerAsync, ContainerRequest, Image, ImageExt as _, TestcontainersError,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

use super::address::ImageName;
use super::error::ContainerError;
use super::reaper;

/// The environment variable that groups the containers of one run of CI.
const RUN_VARIABLE: &str = "FOLDSTREAM_RUN";
const RUN_LABEL: &str = "foldstream.run";

/// The number of a container's last log lines that an error shows.
const LOG_LINES: usize = 60;

/// The settings that all containers of one kind of server share.
#[derive(Clone, Copy)]
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) image_variable: &'static str,
    pub(super) address_variable: &'static str,
    pub(super) default_image: &'static str,
}

impl Server {
    /// Returns the address of the running server that the environment names, if any.
    pub(super) fn address(&self) -> Result<Option<String>, ContainerError> {
        Ok(variable(self.address_variable)?.map(|value| value.trim_end_matches('/').to_owned()))
    }

    /// Returns the image to start.
    pub(super) fn image(&self) -> Result<ImageName, ContainerError> {
        let image = variable(self.image_variable)?;
        ImageName::parse(image.as_deref().unwrap_or(self.default_image))
            .map_err(|reason| ContainerError::variable(self.image_variable, reason))
    }

    /// Checks that the server that the environment names accepts connections.
    pub(super) async fn expect_reachable(&self, address: &str) -> Result<(), ContainerError> {
        let patience = Duration::from_secs(10);
        let connected = timeout(patience, TcpStream::connect(address)).await;
        connected
            .unwrap_or_else(|late| Err(late.into()))
            .map(drop)
            .map_err(|source| ContainerError::Unreachable {
                server: self.name,
                address: address.to_owned(),
                variable: self.address_variable,
                source,
            })
    }

    /// Prints on standard error on which server the tests run, so that a test report names it.
    pub(super) fn announce(&self, address: &str, image: Option<&ImageName>) {
        let origin = match image {
            Some(image) => format!("image {image}"),
            None => format!("named by {}", self.address_variable),
        };
        note(&format!("{} at {address}, {origin}", self.name));
    }

    /// Creates and starts a container, and waits for the conditions of its request.
    pub(super) async fn launch<I: Image + 'static>(
        &self,
        image: &ImageName,
        request: ContainerRequest<I>,
        within: Duration,
    ) -> Result<Started<I>, ContainerError> {
        let log = LogTail::default();
        let sink = log.clone();
        let mut request = request
            .with_label(reaper::OWNER_LABEL, reaper::owner())
            .with_startup_timeout(within)
            .with_log_consumer(move |frame: &LogFrame| sink.push(frame));
        if let Some(run) = variable(RUN_VARIABLE)? {
            request = request.with_label(RUN_LABEL, run);
        }
        match request.start().await {
            Ok(container) => Ok(Started {
                server: *self,
                image: image.clone(),
                container,
                log,
            }),
            Err(error) => Err(self.failure(image, &log, error)),
        }
    }

    fn failure(
        &self,
        image: &ImageName,
        log: &LogTail,
        error: TestcontainersError,
    ) -> ContainerError {
        let (server, image) = (self.name, image.to_string());
        match &error {
            TestcontainersError::Client(ClientError::PullImage { .. }) => ContainerError::Image {
                server,
                image,
                variable: self.image_variable,
                source: error.into(),
            },
            TestcontainersError::Client(client) if no_engine(client) => ContainerError::Docker {
                server,
                variable: self.address_variable,
                source: error.into(),
            },
            _ => ContainerError::NotReady {
                server,
                image,
                log: log.text(),
                source: error.into(),
            },
        }
    }
}

/// Returns true if the Docker engine could not be found or gave no answer.
///
/// Otherwise the engine is there, and the request to it is at fault.
fn no_engine(error: &ClientError) -> bool {
    match error {
        ClientError::Init(_)
        | ClientError::Configuration(_)
        | ClientError::InvalidDockerHost(_) => true,
        ClientError::CreateContainer(docker) | ClientError::StartContainer(docker) => {
            !matches!(docker, DockerError::DockerResponseServerError { .. })
        }
        _ => false,
    }
}

/// A running container that may not be ready yet.
pub(super) struct Started<I: Image> {
    server: Server,
    image: ImageName,
    container: ContainerAsync<I>,
    log: LogTail,
}

impl<I: Image + 'static> Started<I> {
    /// Returns the address at which the host reaches a port of the container.
    ///
    /// The address is always IPv4, because `localhost` may mean `::1`, on which Docker does not
    /// publish the same port.
    pub(super) async fn address(&self, port: ContainerPort) -> Result<String, ContainerError> {
        let found = async {
            let host = self.container.get_host().await?.to_string();
            let host = if host == "localhost" {
                "127.0.0.1".to_owned()
            } else {
                host
            };
            Ok(format!(
                "{host}:{}",
                self.container.get_host_port_ipv4(port).await?
            ))
        };
        found
            .await
            .map_err(|error| self.server.failure(&self.image, &self.log, error))
    }

    /// Sends requests until the server answers in HTTP, with any status.
    pub(super) async fn until_http_answers(
        &self,
        address: &str,
        within: Duration,
    ) -> Result<(), ContainerError> {
        let deadline = Instant::now() + within;
        loop {
            let error: Box<dyn Error + Send + Sync> = match ask_http(address).await {
                Ok(()) => return Ok(()),
                Err(error) => error.into(),
            };
            let running = self.container.is_running().await.unwrap_or(false);
            if !running || Instant::now() > deadline {
                return Err(ContainerError::NotReady {
                    server: self.server.name,
                    image: self.image.to_string(),
                    log: self.log.text(),
                    source: if running {
                        error
                    } else {
                        "the container has stopped".into()
                    },
                });
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) fn into_container(self) -> Container {
        Container(Some(Arc::new(Held {
            server: self.server,
            image: self.image,
            log: self.log,
            switch: Box::new(self.container),
        })))
    }
}

/// Sends one HTTP request and checks that the answer is HTTP.
///
/// A connection alone proves nothing, because Docker's port proxy accepts connections before the
/// server does.
async fn ask_http(address: &str) -> io::Result<()> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        if &answer == b"HTTP/" {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    };
    timeout(Duration::from_secs(5), exchange)
        .await
        .unwrap_or_else(|late| Err(late.into()))
}

/// A container, and what an error about it says.
struct Held {
    server: Server,
    image: ImageName,
    log: LogTail,
    switch: Box<dyn Switch>,
}

/// A container of any image that is stopped and started.
trait Switch: Send + Sync {
    fn stop(&self) -> BoxFuture<'_, Result<(), TestcontainersError>>;
    fn start(&self) -> BoxFuture<'_, Result<(), TestcontainersError>>;
}

impl<I: Image> Switch for ContainerAsync<I> {
    fn stop(&self) -> BoxFuture<'_, Result<(), TestcontainersError>> {
        // Without a grace, as in a crash.
        Box::pin(self.stop_with_timeout(Some(0)))
    }
    fn start(&self) -> BoxFuture<'_, Result<(), TestcontainersError>> {
        Box::pin(ContainerAsync::start(self))
    }
}

/// A container of any image, which is removed when the value is dropped.
pub(super) struct Container(Option<Arc<Held>>);

impl Container {
    /// Kills what runs in the container, and starts it again after `down`.
    pub(super) async fn restart(&self, down: Duration) -> Result<(), ContainerError> {
        let Some(held) = self.0.clone() else {
            return Ok(());
        };
        on_runtime(async move {
            let restarted = async {
                held.switch.stop().await?;
                sleep(down).await;
                held.switch.start().await
            };
            let restarted = restarted.await;
            restarted.map_err(|error| held.server.failure(&held.image, &held.log, error))
        })
        .await
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Container(..)")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let container = self.0.take();
        // The handle blocks on Docker while it is dropped, and may only do so on the runtime of the
        // containers. If the process ends before the container is removed, the reaper removes it.
        if let Ok(runtime) = runtime() {
            runtime.spawn(async move { drop(container) });
        }
    }
}

/// The last lines of a container's log.
#[derive(Clone, Default)]
struct LogTail(Arc<Mutex<VecDeque<String>>>);

impl LogTail {
    fn push(&self, frame: &LogFrame) {
        let text = String::from_utf8_lossy(frame.bytes());
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines() {
            if lines.len() == LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(format!("    {line}"));
        }
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return "    (it printed nothing)".to_owned();
        }
        lines
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Returns the runtime that drives all containers.
///
/// The runtime of a test ends with the test, but the connections of a shared container to Docker
/// must not.
fn runtime() -> Result<&'static Runtime, ContainerError> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let mut builder = Builder::new_multi_thread();
            builder
                .worker_threads(2)
                .thread_name("foldstream-containers")
                .enable_all()
                .build()
        })
        .as_ref()
        .map_err(|error| ContainerError::Runtime(io::Error::new(error.kind(), error.to_string())))
}

/// Runs a start to its end even if the caller's future is dropped.
///
/// In that case the started container is dropped too, and so removed.
pub(super) async fn on_runtime<T: Send + 'static>(
    start: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> Result<T, ContainerError> {
    match runtime()?.spawn(start).await {
        Ok(result) => result,
        Err(lost) => Err(ContainerError::Runtime(io::Error::other(lost))),
    }
}

/// Returns the value, or panics with the error and all its causes.
pub(super) fn or_panic<T>(result: Result<T, &ContainerError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{}", error.report()),
    }
}

/// Prints a line directly to standard error, which the test harness does not capture.
pub(super) fn note(line: &str) {
    // If standard error is closed, the line is dropped: it must not fail the test.
    let _ = writeln!(io::stderr(), "live: {line}");
}

/// Returns the value of an environment variable, or `None` if it is empty or not set.
fn variable(name: &'static str) -> Result<Option<String>, ContainerError> {
    match std::env::var(name) {
        Ok(value) if value.trim().is_empty() => Ok(None),
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(ContainerError::variable(name, "is not valid Unicode"))
        }
    }
}
