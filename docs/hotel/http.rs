use super::{
    arrivals::Arrivals,
    booking::{Booking, BookingCommand},
    front_desk::FrontDesk,
    room::{RoomCommand, RoomId, Stay},
};
use bytes::Bytes;
use foldstream::{
    ExecuteError, LoadError, Metadata, Version, chain,
    ports::{ControlStore, EventStore},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    convert::Infallible,
    fmt::{Debug, Display},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_BODY: usize = 64 * 1024;

/// All that a request can reach.
#[derive(Clone, Debug)]
pub struct Hotel {
    pub desk: FrontDesk,
    pub arrivals: Arrivals,
}

impl Hotel {
    pub fn new(store: Arc<dyn EventStore>, control: Arc<dyn ControlStore>) -> Self {
        let mut desk = FrontDesk::new(store);
        desk.bookings = desk.bookings.with_idempotency(control, DAY);
        Self {
            desk,
            arrivals: Arrivals::default(),
        }
    }
}

#[derive(Debug, serde::Deserialize)]
struct Furnish {
    beds: u8,
}

#[derive(Debug, serde::Deserialize)]
struct Book {
    room: RoomId,
    guest: String,
    stay: Stay,
}

#[derive(Debug, serde::Deserialize)]
struct Charge {
    item: String,
    cents: u64,
}

/// An answer that is not a success.
#[derive(Debug)]
struct Problem(StatusCode, String);

pub type Answer = Response<Full<Bytes>>;

/// Answers one request of a client. Any web framework can call this function.
pub async fn handle(hotel: &Hotel, request: &Request<Bytes>) -> Answer {
    let answered = route(hotel, request).await;
    answered.unwrap_or_else(|Problem(status, detail)| answer(status, &detail))
}

async fn route(hotel: &Hotel, request: &Request<Bytes>) -> Result<Answer, Problem> {
    let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    match (request.method().as_str(), path.as_slice()) {
        ("PUT", ["rooms", room]) => furnish(hotel, room, request).await,
        ("PUT", ["bookings", id]) => book(hotel, id, request).await,
        ("GET", ["bookings", id]) => read_bill(hotel, id).await,
        ("POST", ["bookings", id, "check-in"]) => check_in(hotel, id).await,
        ("POST", ["bookings", id, "charges"]) => charge(hotel, id, request).await,
        ("POST", ["bookings", id, "check-out"]) => check_out(hotel, id, request).await,
        ("GET", ["arrivals", day]) => {
            let day = day.parse().map_err(|_| bad("a day is a number"))?;
            Ok(answer(StatusCode::OK, &hotel.arrivals.on(day)))
        }
        _ => Err(Problem(StatusCode::NOT_FOUND, "no such resource".into())),
    }
}

async fn furnish(hotel: &Hotel, room: &str, request: &Request<Bytes>) -> Result<Answer, Problem> {
    let Furnish { beds } = body(request)?;
    let furnish = RoomCommand::Furnish { beds };
    hotel.desk.rooms.execute(&room.into(), furnish).await?;
    Ok(answer(StatusCode::OK, room))
}

async fn book(hotel: &Hotel, id: &str, request: &Request<Bytes>) -> Result<Answer, Problem> {
    let Book { room, guest, stay } = body(request)?;
    let is_new = hotel.desk.book(&id.into(), &room, &guest, stay).await?;
    let status = match is_new {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok(answer(status, id))
}

async fn check_in(hotel: &Hotel, id: &str) -> Result<Answer, Problem> {
    let bookings = &hotel.desk.bookings;
    let done = bookings
        .execute(&id.into(), BookingCommand::CheckIn)
        .await?;
    Ok(bill(done.state(), done.version()))
}

async fn charge(hotel: &Hotel, id: &str, request: &Request<Bytes>) -> Result<Answer, Problem> {
    let Charge { item, cents } = body(request)?;
    let (charge, key) = (BookingCommand::Charge { item, cents }, command_id(request)?);
    let bookings = &hotel.desk.bookings;
    let done = bookings.execute_with(&id.into(), charge, key).await?;
    Ok(bill(done.state(), done.version()))
}

async fn check_out(hotel: &Hotel, id: &str, request: &Request<Bytes>) -> Result<Answer, Problem> {
    let (seen, key) = (if_match(request)?, command_id(request)?);
    let bookings = &hotel.desk.bookings;
    let check_out = BookingCommand::CheckOut;
    match bookings
        .execute_at_with(&id.into(), seen, check_out, key)
        .await
    {
        Ok(done) => Ok(bill(done.state(), done.version())),
        // The booking has moved since the guest saw the bill.
        Err(ExecuteError::Conflict(moved)) => {
            Err(Problem(StatusCode::PRECONDITION_FAILED, moved.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

async fn read_bill(hotel: &Hotel, id: &str) -> Result<Answer, Problem> {
    let booking = hotel.desk.bookings.load(&id.into()).await;
    let booking = booking.map_err(ExecuteError::<Infallible>::from)?;
    if booking.version() == Version::NONE {
        return Err(Problem(StatusCode::NOT_FOUND, "no such booking".into()));
    }
    Ok(bill(booking.state(), booking.version()))
}

fn bill(booking: &Booking, version: Version) -> Answer {
    let mut answer = answer(StatusCode::OK, &booking.owed_cents);
    if let Ok(etag) = format!("\"{version}\"").parse() {
        answer.headers_mut().insert(hyper::header::ETAG, etag);
    }
    answer
}

/// The command's id from Idempotency-Key, and a digest of the whole request.
fn command_id(request: &Request<Bytes>) -> Result<Metadata, Problem> {
    let key = header(request, "idempotency-key")?;
    let mut digest = format!("{} {}\n", request.method(), request.uri()).into_bytes();
    digest.extend_from_slice(request.body());
    Ok(Metadata::new()
        .with_command_id(key)
        .with_command_digest(digest))
}

fn if_match(request: &Request<Bytes>) -> Result<Version, Problem> {
    let etag = header(request, "if-match")?;
    let number = etag.trim_matches('"').parse();
    number
        .map(Version::new)
        .map_err(|_| bad("If-Match holds no ETag of this service"))
}

fn header<'a>(request: &'a Request<Bytes>, name: &str) -> Result<&'a str, Problem> {
    let value = request.headers().get(name);
    let text = value.and_then(|value| value.to_str().ok());
    text.ok_or_else(|| {
        Problem(
            StatusCode::PRECONDITION_REQUIRED,
            format!("{name} is missing"),
        )
    })
}

fn body<T: DeserializeOwned>(request: &Request<Bytes>) -> Result<T, Problem> {
    serde_json::from_slice(request.body()).map_err(|error| bad(&error.to_string()))
}

fn bad(detail: &str) -> Problem {
    Problem(StatusCode::BAD_REQUEST, detail.into())
}

fn answer(status: StatusCode, content: &(impl Serialize + ?Sized)) -> Answer {
    let json = serde_json::to_vec(content).unwrap_or_default();
    let mut answer = Response::new(Full::new(json.into()));
    *answer.status_mut() = status;
    answer
}

impl<E: Debug + Display + 'static> From<ExecuteError<E>> for Problem {
    fn from(error: ExecuteError<E>) -> Self {
        let status = match &error {
            ExecuteError::Rejected(_) => StatusCode::CONFLICT,
            ExecuteError::CommandIdReused { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ExecuteError::InvalidCommandId { .. }
            | ExecuteError::Load(LoadError::InvalidStreamId(_)) => StatusCode::BAD_REQUEST,
            error if error.is_transient() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, chain(&error))
    }
}

/// Serves HTTP/1.1 until `shutdown`; then lets requests in hand finish.
pub async fn serve(
    listener: TcpListener,
    hotel: Hotel,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted?.0,
        };
        let (hotel, shutdown) = (hotel.clone(), shutdown.clone());
        connections.spawn(async move {
            let service = service_fn(|request| read_and_handle(&hotel, request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                biased;
                ended = connection.as_mut() => return ended,
                () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        });
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn read_and_handle(hotel: &Hotel, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    Ok(match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => handle(hotel, &Request::from_parts(head, body.to_bytes())).await,
        Err(_) => answer(StatusCode::PAYLOAD_TOO_LARGE, &"the body cannot be read"),
    })
}
