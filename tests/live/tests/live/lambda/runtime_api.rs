//! A small fake of Lambda's Runtime API, on loopback.
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

/// The answer of a function to one invocation.
#[derive(Debug)]
pub(crate) enum Answer {
    Response(Value),
    Error(Value),
}

struct Invocation {
    id: String,
    deadline: Duration,
    event: String,
}

struct Shared {
    next: tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
    running: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
}

/// The Runtime API of one function.
pub(crate) struct RuntimeApi {
    pub(crate) address: String,
    invocations: mpsc::UnboundedSender<Invocation>,
    shared: Arc<Shared>,
    count: AtomicU64,
}

impl RuntimeApi {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (invocations, next) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            next: tokio::sync::Mutex::new(next),
            running: Mutex::default(),
        });
        let served = shared.clone();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let shared = served.clone();
                let answer = service_fn(move |request| answer(shared.clone(), request));
                let connection = TokioIo::new(connection);
                // A process that is killed closes its connection, which is no concern of the test.
                tokio::spawn(http1::Builder::new().serve_connection(connection, answer));
            }
        });
        Self {
            address,
            invocations,
            shared,
            count: AtomicU64::new(0),
        }
    }

    /// Invokes the function, and waits for its answer.
    pub(crate) async fn invoke(&self, event: &Value, timeout: Duration) -> Answer {
        let answer = self.try_invoke(event, timeout).await;
        answer.expect("the function answers before its deadline")
    }

    /// Invokes the function, and returns its answer; `None` if none comes before the deadline.
    pub(crate) async fn try_invoke(&self, event: &Value, timeout: Duration) -> Option<Answer> {
        let id = format!("request-{}", self.count.fetch_add(1, Ordering::SeqCst));
        let (sender, answer) = oneshot::channel();
        self.shared
            .running
            .lock()
            .unwrap()
            .insert(id.clone(), sender);
        let invocation = Invocation {
            id,
            deadline: UNIX_EPOCH.elapsed().unwrap() + timeout,
            event: event.to_string(),
        };
        assert!(self.invocations.send(invocation).is_ok());
        // An answer after the deadline is none: Lambda has killed the function by then.
        tokio::time::timeout(timeout, answer).await.ok()?.ok()
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = head.uri.path().strip_prefix("/2018-06-01/runtime/");
    let path: Vec<&str> = path.unwrap_or_default().split('/').collect();
    let response = Response::builder();
    let response = match (head.method, &path[..]) {
        (Method::GET, ["invocation", "next"]) => {
            let next = shared.next.lock().await.recv().await;
            // The sender lives as long as the test.
            let Some(Invocation {
                id,
                deadline,
                event,
            }) = next
            else {
                return std::future::pending().await;
            };
            response
                .header("lambda-runtime-aws-request-id", id)
                .header(
                    "lambda-runtime-deadline-ms",
                    deadline.as_millis().to_string(),
                )
                .header("lambda-runtime-invoked-function-arn", "arn:aws:lambda:test")
                .body(event.into())
        }
        (Method::POST, ["invocation", id, kind]) => {
            let json = serde_json::from_slice(&body).unwrap();
            let answer = if *kind == "response" {
                Answer::Response(json)
            } else {
                Answer::Error(json)
            };
            if let Some(waits) = shared.running.lock().unwrap().remove(*id) {
                // The test may have given the invocation up.
                let _ = waits.send(answer);
            }
            response
                .status(StatusCode::ACCEPTED)
                .body(Bytes::new().into())
        }
        (method, path) => panic!("{method} {path:?}"),
    };
    Ok(response.unwrap())
}
