//! The loop of the function: invocations from the Runtime API, until the process is told to stop.
use crate::handler::{Handler, HandlerError, Response};
use foldstream::{BoxError, Timestamp};
use lambda_runtime::{Diagnostic, LambdaEvent, Runtime, service_fn};
use serde_json::Value;
use std::sync::Arc;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};

/// Handles the invocations of the Lambda Runtime API, and returns after SIGTERM.
///
/// An invocation that is under way then ends early: what it has not published is reported, or set
/// aside, as at its deadline.
///
/// # Errors
/// If the Runtime API cannot be used, or the process cannot listen to signals.
pub async fn run(handler: Handler) -> Result<(), BoxError> {
    let mut terminated = signal(SignalKind::terminate())?;
    let (stop, handler) = (handler.stop(), Arc::new(handler));
    let busy = Arc::new(Mutex::new(()));
    let invocation = {
        let busy = busy.clone();
        move |event: LambdaEvent<Value>| {
            let (handler, busy) = (handler.clone(), busy.clone());
            async move {
                let _busy = busy.lock().await;
                invoked(&handler, event).await
            }
        }
    };
    let runtime = Runtime::new(service_fn(invocation));
    let mut running = std::pin::pin!(runtime.run());
    tokio::select! {
        ended = &mut running => return ended,
        _ = terminated.recv() => {}
    }
    tracing::info!("the process was told to stop");
    stop.cancel();
    // The runtime is polled meanwhile, so that the answer of the last invocation is sent.
    let idle = async {
        drop(busy.lock().await);
        tokio::time::sleep(ANSWER).await;
    };
    tokio::select! {
        ended = running => ended,
        () = idle => Ok(()),
    }
}

/// The time in which the last answer reaches the Runtime API, which is on the same machine.
const ANSWER: std::time::Duration = std::time::Duration::from_millis(250);

async fn invoked(handler: &Handler, event: LambdaEvent<Value>) -> Result<Response, Diagnostic> {
    let (payload, context) = event.into_parts();
    let deadline = i64::try_from(context.deadline).unwrap_or(i64::MAX);
    let deadline = Timestamp::from_micros(deadline.saturating_mul(1_000));
    let answer = handler.handle(&payload, deadline).await;
    answer.map_err(|error| {
        let text = foldstream::chain(&error).to_string();
        tracing::error!(
            request = context.request_id,
            error = text,
            "the invocation failed"
        );
        Diagnostic {
            error_type: error_type(&error).into(),
            error_message: text,
        }
    })
}

const fn error_type(error: &HandlerError) -> &'static str {
    match error {
        HandlerError::Event(_) => "InvalidEvent",
        HandlerError::Sweep(_) => "SweepError",
    }
}
