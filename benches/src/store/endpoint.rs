//! A DynamoDB emulator in this process, and a meter in front of it.
//!
//! Times are taken at the emulator itself. The meter is a proxy that counts the trips. It asks for
//! the consumed capacity of every request and sums it, so the counts do not depend on the client.
use crate::BenchError;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Runtime};

/// The cost of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) trips: f64,
    pub(crate) write_units: f64,
    pub(crate) read_units: f64,
}

impl std::ops::Div<f64> for Cost {
    type Output = Self;
    fn div(self, by: f64) -> Self {
        Self {
            trips: self.trips / by,
            write_units: self.write_units / by,
            read_units: self.read_units / by,
        }
    }
}

/// An empty database, reachable directly, through the meter, and through a wire that delays answers
/// by `DELAY`.
pub(crate) struct Endpoint {
    pub(crate) direct: String,
    pub(crate) metered: String,
    pub(crate) distant: String,
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(crate::io("no runtime for the proxies"))?;
        let server = DynamoDbServer::start().map_err(crate::io("the emulator does not start"))?;
        let direct = server.endpoint().to_owned();
        let meter = Arc::new(Mutex::new(Cost::default()));
        let (metered, distant) = runtime.block_on(async {
            let metered = proxy(&direct, Some(meter.clone()), Duration::ZERO).await?;
            let distant = proxy(&direct, None, DELAY).await?;
            Ok::<_, BenchError>((metered, distant))
        })?;
        Ok(Self {
            direct,
            metered,
            distant,
            meter,
            _server: server,
            _runtime: runtime,
        })
    }

    /// Returns the cost since the last call, and resets it.
    pub(crate) fn take_cost(&self) -> Cost {
        std::mem::take(&mut *self.meter.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
}

async fn proxy(
    to: &str,
    meter: Option<Arc<Mutex<Cost>>>,
    delay: Duration,
) -> Result<String, BenchError> {
    let (listener, address) = listen().await?;
    let proxy = Arc::new(Proxy {
        to: to.into(),
        http: Client::builder(TokioExecutor::new()).build_http(),
        meter,
        delay,
    });
    let app = Router::new().fallback(forward).with_state(proxy);
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
    async fn forward(&self, request: Request) -> Result<Response, BenchError> {
        let (mut head, body) = request.into_parts();
        let mut body = body.collect().await.map_err(BenchError::other)?.to_bytes();
        let target = head.headers.get("x-amz-target");
        let operation = target.and_then(|t| t.to_str().ok()).unwrap_or_default();
        let is_write = !["Query", "GetItem", "BatchGetItem", "Scan"]
            .iter()
            .any(|read| operation.ends_with(read));
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
            let mut cost = meter.lock().unwrap_or_else(PoisonError::into_inner);
            cost.trips += 1.0;
            if is_write {
                cost.write_units += units;
            } else {
                cost.read_units += units;
            }
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
