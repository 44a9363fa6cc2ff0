//! A DynamoDB emulator in this process, and a meter in front of it.
//!
//! Times are taken at the emulator itself. The meter is a proxy that counts the trips. It asks for
//! the consumed capacity of every request and sums it, so the counts do not depend on the client.
//! Another proxy repeats the answers to scans from memory, so that a scan costs next to nothing but
//! what its client does.
use crate::BenchError;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header, response::Parts},
    response::{IntoResponse, Response},
};
use foldstream_testkit::embedded::DynamoDbServer;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Runtime};

/// The cost of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) trips: f64,
    pub(crate) write_units: f64,
    pub(crate) read_units: f64,
    /// The part of the read units that scans have consumed.
    pub(crate) scan_units: f64,
}

impl std::ops::Div<f64> for Cost {
    type Output = Self;
    fn div(self, by: f64) -> Self {
        Self {
            trips: self.trips / by,
            write_units: self.write_units / by,
            read_units: self.read_units / by,
            scan_units: self.scan_units / by,
        }
    }
}

/// An empty database, reachable directly, through the meter, through a wire that delays answers by
/// `DELAY`, and through a proxy that repeats the answers to scans.
pub(crate) struct Endpoint {
    pub(crate) direct: String,
    pub(crate) metered: String,
    pub(crate) distant: String,
    pub(crate) recorded: String,
    meter: Arc<Mutex<Cost>>,
    /// The emulator, which serves until it is dropped.
    _server: DynamoDbServer,
    /// The runtime of the proxies.
    _runtime: Runtime,
}

/// The delay that the distant wire adds to each answer.
pub(crate) const DELAY: Duration = Duration::from_millis(5);

impl Endpoint {
    pub(crate) fn start() -> Result<Self, BenchError> {
        let runtime = crate::runtime().map_err(crate::io("no runtime for the proxies"))?;
        let server = DynamoDbServer::start().map_err(crate::io("the emulator does not start"))?;
        let direct = server.endpoint().to_owned();
        let meter = Arc::new(Mutex::new(Cost::default()));
        let (metered, distant, recorded) = runtime.block_on(async {
            let meter = Some(meter.clone());
            let metered = proxy(Proxy {
                meter,
                ..Proxy::to(&direct)
            })
            .await?;
            let delay = DELAY;
            let distant = proxy(Proxy {
                delay,
                ..Proxy::to(&direct)
            })
            .await?;
            let answers = Some(Mutex::default());
            let recorded = proxy(Proxy {
                answers,
                ..Proxy::to(&direct)
            })
            .await?;
            Ok::<_, BenchError>((metered, distant, recorded))
        })?;
        Ok(Self {
            direct,
            metered,
            distant,
            recorded,
            meter,
            _server: server,
            _runtime: runtime,
        })
    }

    /// Returns the cost since the last call, and resets it.
    pub(crate) fn take_cost(&self) -> Cost {
        std::mem::take(&mut *lock(&self.meter))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen() -> Result<(TcpListener, String), BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(crate::io("no port for a proxy"))?;
    let address = listener
        .local_addr()
        .map_err(crate::io("no port for a proxy"))?;
    Ok((listener, format!("http://{address}")))
}

struct Proxy {
    to: String,
    http: Client<HttpConnector, Full<Bytes>>,
    meter: Option<Arc<Mutex<Cost>>>,
    delay: Duration,
    /// The answers to scans so far, by request.
    answers: Option<Mutex<HashMap<String, Answer>>>,
}

/// An answer that is repeated.
#[derive(Clone)]
struct Answer {
    head: Parts,
    body: Bytes,
}

async fn proxy(proxy: Proxy) -> Result<String, BenchError> {
    let (listener, address) = listen().await?;
    let app = Router::new().fallback(forward).with_state(Arc::new(proxy));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

/// Forwards one request. If that fails, the proxy answers 502; the SDK reports it and no sample is
/// taken.
async fn forward(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    match proxy.forward(request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

impl Proxy {
    /// Creates a proxy that changes and counts nothing.
    fn to(endpoint: &str) -> Self {
        Self {
            to: endpoint.into(),
            http: Client::builder(TokioExecutor::new()).build_http(),
            meter: None,
            delay: Duration::ZERO,
            answers: None,
        }
    }

    async fn forward(&self, request: Request) -> Result<Response, BenchError> {
        let (mut head, body) = request.into_parts();
        let mut body = body.collect().await.map_err(BenchError::other)?.to_bytes();
        let target = head.headers.get("x-amz-target");
        let operation = target.and_then(|t| t.to_str().ok()).unwrap_or_default();
        let is_write = !["Query", "GetItem", "BatchGetItem", "Scan"]
            .iter()
            .any(|read| operation.ends_with(read));
        let is_scan = operation.ends_with("Scan");
        // Equal requests may name their members in another order.
        let recorded = match &self.answers {
            Some(answers) if is_scan => {
                let request: Value = serde_json::from_slice(&body)?;
                Some((answers, request.to_string()))
            }
            _ => None,
        };
        if let Some((answers, request)) = &recorded {
            let known = lock(answers).get(request).cloned();
            if let Some(Answer { head, body }) = known {
                return Ok(Response::from_parts(head, Body::from(body)));
            }
        }
        if self.meter.is_some() {
            let mut value: Value = serde_json::from_slice(&body)?;
            value["ReturnConsumedCapacity"] = "TOTAL".into();
            body = serde_json::to_vec(&value)?.into();
            head.headers.remove(header::CONTENT_LENGTH);
        }
        head.uri = format!("{}{}", self.to, head.uri.path())
            .parse()
            .map_err(BenchError::other)?;
        let request = axum::http::Request::from_parts(head, Full::new(body));
        let answer = self
            .http
            .request(request)
            .await
            .map_err(BenchError::other)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(BenchError::other)?.to_bytes();
        if let Some(meter) = &self.meter {
            let units = units(&serde_json::from_slice(&body)?);
            let mut cost = lock(meter);
            cost.trips += 1.0;
            if is_write {
                cost.write_units += units;
            } else {
                cost.read_units += units;
            }
            if is_scan {
                cost.scan_units += units;
            }
        }
        if let Some((answers, request)) = recorded
            && head.status.is_success()
        {
            let (head, body) = (head.clone(), body.clone());
            lock(answers).insert(request, Answer { head, body });
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        Ok(Response::from_parts(head, Body::from(body)))
    }
}

/// Sums the capacity units of an answer over all its tables and indexes.
fn units(answer: &Value) -> f64 {
    let of = |consumed: &Value| consumed["CapacityUnits"].as_f64().unwrap_or(0.0);
    match &answer["ConsumedCapacity"] {
        Value::Array(tables) => tables.iter().map(of).sum(),
        one => of(one),
    }
}
