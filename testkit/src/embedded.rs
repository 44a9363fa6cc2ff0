//! A DynamoDB emulator that runs in the process of the test.
//!
//! The emulator is [dynoxide](https://crates.io/crates/dynoxide-rs), which keeps its tables in
//! SQLite. It speaks DynamoDB's protocol over plain HTTP, so any client can use it. It starts in
//! milliseconds and needs neither Docker nor Java. The feature `embedded` compiles SQLite, which
//! needs a C compiler.
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
//! | throttles, and is sometimes unreachable | always answers; put [`Faults`](crate::faults::Faults) over the stores |
//! | cancels concurrent transactions on the same items (`TransactionConflict`) | carries out one request after the other |
//! | eventually consistent reads and indexes lag | every read and every index is up to date |
//! | deletes rows after their time to live | keeps them; the stores treat such rows as absent |
//! | splits the shards of a change stream | has one shard per table, and reads all records of the stream at each write |
//! | backups, point-in-time recovery, global tables | `UnknownOperationException` |
//! | checks credentials and permissions | accepts any |
//!
//! Size limits (400 KB per item, 100 items and 4 MB per transaction, pages of 1 MB), conditions,
//! indexes and consumed capacity are as in DynamoDB. The tables are dropped with the server. To be
//! certain of a behavior, run the test on DynamoDB Local or on AWS, see the feature `containers`.
use std::{
    fmt, io,
    net::TcpListener,
    sync::{LazyLock, mpsc},
    time::Duration,
};
use tokio::{runtime::Runtime, sync::oneshot};

/// The time that a dropped server has to answer open requests.
const GRACE: Duration = Duration::from_secs(2);

/// A DynamoDB emulator in this process, on a free port of 127.0.0.1.
///
/// Dropping the value stops the server. Each server has tables of its own, so tests can run in
/// parallel. It accepts any credentials and any region.
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
    /// Stops the server when it is dropped; `None` if the server keeps running.
    stop: Option<oneshot::Sender<()>>,
    /// Ends once the server has stopped; `None` if the server keeps running.
    stopped: Option<mpsc::Receiver<()>>,
}

impl DynamoDbServer {
    /// Starts a server without tables.
    ///
    /// May be called inside and outside of an async runtime. Servers run on threads of their own,
    /// and so outlive the runtime of one test.
    ///
    /// # Errors
    /// If no port is free, the tables cannot be created, or the server's threads cannot be started.
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
                // The sender sends nothing: dropping it stops the server.
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

    /// Lets the server run until the process ends, and returns its URL.
    ///
    /// This is for functions that return a store and cannot keep the server, such as those of the
    /// contract suites.
    #[must_use]
    pub fn keep_running(mut self) -> String {
        if let Some(stop) = self.stop.take() {
            std::mem::forget(stop);
        }
        self.stopped = None;
        std::mem::take(&mut self.endpoint)
    }
}

/// Stops the server and closes its port. Waits at most 2 seconds for open requests to be answered.
impl Drop for DynamoDbServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(stopped) = self.stopped.take() {
            // Nothing is ever sent. The call returns when the server ends or the time is over.
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

/// Returns the runtime whose threads all servers of the process share.
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
