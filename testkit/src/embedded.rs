//! A DynamoDB emulator in the process of the test: [`DynamoDbServer`].
//!
//! The emulator is [dynoxide](https://crates.io/crates/dynoxide-rs), which keeps its tables in SQLite. It speaks
//! DynamoDB's protocol over plain HTTP, so any client can be pointed at it. It starts in milliseconds and needs neither
//! Docker nor Java. The feature `embedded` compiles SQLite, which needs a C compiler.
//!
//! # Example
//! With `foldstream-dynamodb`, which this crate does not depend on:
//! ```no_run
//! use foldstream_testkit::embedded::DynamoDbServer;
//!
//! let server = DynamoDbServer::start()?;
//! println!("{}", server.endpoint()); // http://127.0.0.1:<a free port>
//! // let config = DynamoDbConfig::default().with_endpoint(server.endpoint());
//! // create_tables(&config, &TableOptions::default()).await?;
//! // let stores = DynamoDb::connect(config).await?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What the emulator does not do
//! | DynamoDB | the emulator |
//! |---|---|
//! | throttles, and is at times not reachable | always answers: put [`Faults`](crate::faults::Faults) over the stores |
//! | cancels transactions that meet (`TransactionConflict`) | carries out one request after the other |
//! | eventually consistent reads and indexes lag | every read and every index is up to date |
//! | deletes rows after their time to live | keeps them; the stores treat such rows as absent |
//! | splits the shards of a change stream | has one shard per table, and reads all records of the stream at each write |
//! | backups, point-in-time recovery, global tables | `UnknownOperationException` |
//! | checks credentials and permissions | takes any |
//!
//! Limits of sizes (400 KB per item, 100 items and 4 MB per transaction, pages of 1 MB), conditions, indexes and consumed
//! capacity are as in DynamoDB. Tables vanish with the server. For the last word, run a test on DynamoDB Local or on AWS:
//! see the feature `containers`.
use std::{
    fmt, io,
    net::TcpListener,
    sync::{LazyLock, mpsc},
    time::Duration,
};
use tokio::{runtime::Runtime, sync::oneshot};

/// The time that a server which is dropped has for requests that are under way.
const GRACE: Duration = Duration::from_secs(2);

/// An empty DynamoDB in this process, on a free port of 127.0.0.1. Dropping it stops the server.
///
/// Each server has tables of its own, so tests run in parallel. Credentials and region may be anything.
///
/// # Example
/// ```
/// use foldstream_testkit::embedded::DynamoDbServer;
/// use std::net::TcpStream;
///
/// let (one, two) = (DynamoDbServer::start()?, DynamoDbServer::start()?);
/// assert_ne!(one.endpoint(), two.endpoint());
/// let address = one.endpoint().trim_start_matches("http://").to_owned();
/// assert!(TcpStream::connect(&address).is_ok());
/// drop(one);
/// assert!(TcpStream::connect(&address).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "the server stops when it is dropped"]
pub struct DynamoDbServer {
    endpoint: String,
    /// Both are `None` once the server runs without an owner.
    stop: Option<oneshot::Sender<()>>,
    stopped: Option<mpsc::Receiver<()>>,
}

impl DynamoDbServer {
    /// Starts a server without tables. May be called inside and outside of an async runtime: servers run on threads of
    /// their own, and so outlive the runtime of one test.
    ///
    /// # Errors
    /// If there is no free port, no memory for the tables, or no thread to serve on.
    pub fn start() -> io::Result<Self> {
        let runtime = runtime()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let database = dynoxide::Database::memory().map_err(io::Error::other)?;
        let listener = {
            let _in_runtime = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopping) = oneshot::channel();
        let (tell, stopped) = mpsc::channel();
        runtime.spawn(async move {
            let stop = async {
                // A sender that was dropped means the same as one that was used.
                let _ = stopping.await;
            };
            let served = dynoxide::server::serve_with_shutdown(listener, database, stop).await;
            if let Err(error) = served {
                eprintln!("the embedded DynamoDB has stopped: {error}");
            }
            drop(tell);
        });
        Ok(Self {
            endpoint,
            stop: Some(stop),
            stopped: Some(stopped),
        })
    }

    /// Returns the URL of the server: `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Lets the server run until the process ends, and returns its URL: for functions that hand out a store and keep
    /// nothing, such as those of the contract suites.
    #[must_use]
    pub fn keep_running(mut self) -> String {
        if let Some(stop) = self.stop.take() {
            std::mem::forget(stop);
        }
        self.stopped = None;
        std::mem::take(&mut self.endpoint)
    }
}

/// Stops the server: its port is closed afterwards. Requests that are under way are answered first, for at most 2 seconds.
impl Drop for DynamoDbServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(stopped) = self.stopped.take() {
            // Nothing is ever sent: the channel ends with the server, or the time is over.
            let _ = stopped.recv_timeout(GRACE);
        }
    }
}

impl fmt::Debug for DynamoDbServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDbServer")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Returns the threads that all servers of the process share.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("embedded-dynamodb")
            .enable_all()
            .build()
    });
    let unavailable = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
    RUNTIME.as_ref().map_err(unavailable)
}
