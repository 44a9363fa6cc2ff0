//! A proxy in front of DynamoDB that loses, delays and invents answers, as a seed decides.
//!
//! The proxy knows the requests of a writer by the streams that they name, `proxy#run-<seed>-<n>`.
//! The server carries out what it was asked even if the client has closed the connection meanwhile.
//! Only then is the answer lost, and not the request.
use aws_smithy_types::base64;
use fastrand::Rng;
use foldstream::CommitId;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// The time for which the clients of this test wait for one answer.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);
/// A time that is longer than any client waits.
const HELD: Duration = Duration::from_millis(400);
const PREFIX: &[u8] = b"proxy#run-";

/// The fate of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fate {
    Pass,
    /// The connection closes, and the server sees nothing.
    LoseRequest,
    /// The server applies the request, and then the connection closes.
    LoseAnswer,
    /// The server applies the request, and the answer comes after the client has stopped waiting.
    HoldAnswer,
    /// The server applies the request after the client has given it up.
    HoldRequest,
    /// The answer is an error of the server, which applied nothing.
    Fail,
    /// The server applies the request, and the answer is an error.
    ApplyAndFail,
    Throttle,
    Conflict,
}

impl Fate {
    const FAULTS: [Self; 8] = [
        Self::LoseRequest,
        Self::LoseAnswer,
        Self::HoldAnswer,
        Self::HoldRequest,
        Self::Fail,
        Self::ApplyAndFail,
        Self::Throttle,
        Self::Conflict,
    ];

    /// Returns the fate of the `nth` request (from 0) of one append. It depends on these numbers
    /// alone, so that a seed replays.
    fn of(seed: u64, append: u64, nth: u64) -> Self {
        let mut rng = Rng::with_seed(seed << 20 | append << 8 | nth);
        // Mostly the first request meets a fault. Sometimes all requests do, and the outcome is
        // unknown.
        let of_ten = if nth == 0 { 6 } else { 3 };
        if rng.u32(0..10) >= of_ten {
            return Self::Pass;
        }
        Self::FAULTS[rng.usize(0..Self::FAULTS.len())]
    }
    const fn loses_the_answer(self) -> bool {
        matches!(
            self,
            Self::LoseAnswer | Self::HoldAnswer | Self::ApplyAndFail
        )
    }
}

/// The state of one writer, whose requests are recognized by its seed.
#[derive(Debug, Default)]
struct Run {
    append: u64,
    /// The start of the id of the append's first commit in base64, as its writes carry it.
    commit: String,
    requests: u64,
    tasks: TaskTracker,
    seen: Seen,
}

/// The events that the proxy saw during one append.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// True if the first request was applied, and its answer was lost.
    pub(super) applied_and_lost: bool,
    /// True if a later request met a fault.
    pub(super) met_more: bool,
    /// True if a later request took long, as on a busy machine.
    pub(super) is_slow: bool,
}

/// A proxy that serves until the runtime of the test ends.
#[derive(Clone, Debug)]
pub(super) struct Proxy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: String,
    server: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    runs: Mutex<HashMap<u64, Run>>,
    fates: Mutex<HashMap<Fate, u64>>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub(super) async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self(Arc::new(Inner {
            address: format!("http://{}", listener.local_addr().unwrap()),
            server: server.parse().unwrap(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            runs: Mutex::default(),
            fates: Mutex::default(),
        }));
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = accepting.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| proxy.clone().answer(request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    // An error is a connection that either side closed, which this proxy does on
                    // purpose.
                    let _ = connection
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        proxy
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.0.address
    }
    /// Returns the number of requests that met each fate.
    pub(super) fn fates(&self) -> Vec<(Fate, u64)> {
        let mut fates: Vec<_> = self.0.fates.lock().unwrap().clone().into_iter().collect();
        fates.sort_unstable();
        fates
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<u64, Run>> {
        self.0.runs.lock().unwrap()
    }
    /// Assigns later requests of a writer to this append. Late requests of an earlier append count
    /// with it.
    pub(super) fn begin(&self, seed: u64, append: u64, commit: CommitId) {
        let mut runs = self.runs();
        let run = runs.entry(seed).or_default();
        (run.append, run.requests, run.seen) = (append, 0, Seen::default());
        // 15 of the 16 bytes are 20 letters in base64, whatever bytes follow them in the attribute.
        run.commit = base64::encode(&commit.as_u128().to_be_bytes()[..15]);
    }
    /// Returns what the proxy saw since [`begin`](Self::begin).
    pub(super) fn seen(&self, seed: u64) -> Seen {
        self.runs()[&seed].seen
    }
    /// Waits until the server has done all that this writer asked of it.
    pub(super) async fn drain(&self, seed: u64) {
        let tasks = self.runs()[&seed].tasks.clone();
        tasks.close();
        tasks.wait().await;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let is_transaction = head
            .headers
            .get("x-amz-target")
            .is_some_and(|target| target.as_bytes().ends_with(b"TransactWriteItems"));
        let Some(seed) = run_of(&body) else {
            return self.forward(head, body).await;
        };
        let (fate, append, nth, is_write, tasks) = {
            let mut runs = self.runs();
            let run = runs.entry(seed).or_default();
            let (fate, nth) = (Fate::of(seed, run.append, run.requests), run.requests);
            run.requests += 1;
            run.seen.met_more |= nth > 0 && fate != Fate::Pass;
            let is_write = position(&body, run.commit.as_bytes()).is_some();
            (fate, run.append, nth, is_write, run.tasks.clone())
        };
        *self.0.fates.lock().unwrap().entry(fate).or_default() += 1;
        let lost = || Err(io::Error::other("lost by the proxy"));
        match fate {
            Fate::LoseRequest => return lost(),
            Fate::Fail => return Ok(error(500, "InternalServerError")),
            Fate::Throttle => return Ok(error(400, "ThrottlingException")),
            Fate::Conflict if is_transaction => return Ok(cancelled()),
            Fate::Conflict => return Ok(error(400, "TransactionConflictException")),
            _ => {}
        }
        // A task of its own, since a client that closes its connection would cancel the request
        // otherwise.
        let proxy = self.clone();
        let done = tasks.spawn(async move {
            if fate == Fate::HoldRequest {
                tokio::time::sleep(HELD).await;
            }
            let started = Instant::now();
            let answer = proxy.forward(head, body).await;
            let mut runs = proxy.runs();
            // A request that was held may belong to an earlier append.
            if let Some(run) = runs.get_mut(&seed).filter(|run| run.append == append) {
                run.seen.is_slow |= nth > 0 && started.elapsed() > ATTEMPT_TIMEOUT / 4;
                run.seen.applied_and_lost |= nth == 0
                    && is_write
                    && fate.loses_the_answer()
                    && answer.as_ref().is_ok_and(|a| a.status().is_success());
            }
            drop(runs);
            answer
        });
        let answer = done.await.map_err(io::Error::other)?;
        match fate {
            Fate::LoseAnswer => lost(),
            Fate::ApplyAndFail => Ok(error(500, "InternalServerError")),
            Fate::HoldAnswer => {
                tokio::time::sleep(HELD).await;
                answer
            }
            _ => answer,
        }
    }

    async fn forward(
        &self,
        head: hyper::http::request::Parts,
        body: Bytes,
    ) -> Result<Response<Full<Bytes>>, io::Error> {
        let mut request = Request::from_parts(head, Full::new(body));
        *request.uri_mut() = self.0.server.clone();
        let answer = self.0.client.request(request).await;
        let (head, body) = answer.map_err(io::Error::other)?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    }
}

/// Returns the seed of the writer whose stream a request names.
fn run_of(body: &[u8]) -> Option<u64> {
    let at = position(body, PREFIX)? + PREFIX.len();
    let digits = body[at..].iter().take_while(|b| b.is_ascii_digit());
    let text: String = digits.map(|b| char::from(*b)).collect();
    text.parse().ok()
}

fn position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|w| w == part)
}

fn json(status: u16, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}
fn error(status: u16, code: &str) -> Response<Full<Bytes>> {
    let kind = format!("com.amazonaws.dynamodb.v20120810#{code}");
    json(
        status,
        &serde_json::json!({ "__type": kind, "message": "by the proxy" }),
    )
}
fn cancelled() -> Response<Full<Bytes>> {
    json(
        400,
        &serde_json::json!({
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "Message": "by the proxy",
            "CancellationReasons": [{ "Code": "TransactionConflict", "Message": "by the proxy" }],
        }),
    )
}
