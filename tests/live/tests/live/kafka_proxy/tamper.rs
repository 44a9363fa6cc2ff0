//! A proxy in front of a broker that tampers with produce requests and their answers.
//!
//! The proxy reads frames of Kafka's wire format. A damaged batch is refused by the broker itself
//! as corrupt, so nothing of it is stored, and the answer may then show the client another code. A
//! request that is held back goes to the broker although its client has closed the connection.
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

/// The prefix of the topics whose answers the proxy may rewrite.
pub(crate) const TOPIC: &str = "tampered-";
/// The key of a produce request in Kafka's protocol.
const PRODUCE: [u8; 2] = [0, 0];
/// The code of an answer to a damaged batch.
const CORRUPT_MESSAGE: i16 = 2;
/// Codes after which clients send a request again.
const PASSING: [i16; 6] = [3, 5, 6, 7, 19, 56];
/// Codes after which clients give a request up.
const LASTING: [i16; 6] = [10, 29, 31, 44, 45, 87];

/// The fate of a produce request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Pass,
    /// The broker refuses the request as corrupt, and the client sends it again.
    Corrupt,
    /// The broker refuses the request, and the client sees another code of a passing refusal.
    RefuseForNow,
    /// The broker refuses the request, and the client sees this code.
    Refuse(i16),
    /// The request is late.
    Delay(Duration),
    /// The connection closes before the broker has the request.
    CutBefore,
    /// The broker carries out the request and what was sent after it, and no answer comes.
    CutAfter,
    /// The broker gets half of the request, and the connection closes.
    Half,
}

/// The fates of requests: a script first, and then by chance.
#[derive(Debug)]
struct Plan {
    script: VecDeque<Fate>,
    rng: fastrand::Rng,
    /// The share of requests that meet a fault, in percent.
    faulty: u32,
    /// A time after which clients have given a connection up.
    long: Duration,
    met: BTreeMap<&'static str, u64>,
}

impl Plan {
    fn next(&mut self) -> Fate {
        let fate = match self.script.pop_front() {
            Some(fate) => fate,
            None if self.rng.u32(0..100) >= self.faulty => Fate::Pass,
            None => match self.rng.u32(0..8) {
                0 | 1 => Fate::Corrupt,
                2 => Fate::RefuseForNow,
                3 => Fate::Refuse(LASTING[self.rng.usize(0..LASTING.len())]),
                4 => Fate::Delay(Duration::from_millis(30)),
                5 => Fate::Delay(self.long),
                6 => Fate::CutBefore,
                _ if self.rng.bool() => Fate::CutAfter,
                _ => Fate::Half,
            },
        };
        let name = match fate {
            Fate::Pass => "pass",
            Fate::Corrupt => "corrupt",
            Fate::RefuseForNow => "refuse for now",
            Fate::Refuse(_) => "refuse",
            Fate::Delay(by) if by == self.long => "long delay",
            Fate::Delay(_) => "delay",
            Fate::CutBefore => "cut before",
            Fate::CutAfter => "cut after",
            Fate::Half => "half",
        };
        *self.met.entry(name).or_default() += 1;
        fate
    }
}

/// A proxy that serves until the runtime of the test ends.
#[derive(Clone, Debug)]
pub(crate) struct Proxy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    broker: String,
    port: u16,
    plan: Mutex<Plan>,
}

impl Proxy {
    /// Starts a proxy in front of a broker. Requests pass until faults are asked for.
    pub(crate) async fn start(broker: &str, seed: u64, long: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self(Arc::new(Inner {
            broker: broker.to_owned(),
            port: listener.local_addr().unwrap().port(),
            plan: Mutex::new(Plan {
                script: VecDeque::new(),
                rng: fastrand::Rng::with_seed(seed),
                faulty: 0,
                long,
                met: BTreeMap::new(),
            }),
        }));
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = accepting.clone();
                // The broker may be away for a moment. The client connects again.
                if let Ok(broker) = TcpStream::connect(&proxy.0.broker).await {
                    tokio::spawn(proxy.carry(client, broker));
                }
            }
        });
        proxy
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.plan.lock().unwrap()
    }

    /// Sets the fates of the next produce requests.
    pub(crate) fn script(&self, fates: impl IntoIterator<Item = Fate>) {
        self.plan().script.extend(fates);
    }

    /// Sets the share of produce requests that meet a fault, in percent.
    pub(crate) fn set_faulty(&self, percent: u32) {
        self.plan().faulty = percent;
    }

    /// Returns the number of requests that met each fate.
    pub(crate) fn met(&self) -> BTreeMap<&'static str, u64> {
        self.plan().met.clone()
    }

    async fn carry(self, client: TcpStream, broker: TcpStream) {
        for stream in [&client, &broker] {
            stream.set_nodelay(true).unwrap();
        }
        let (from_client, to_client) = client.into_split();
        let (from_broker, to_broker) = broker.into_split();
        let shared = Arc::new(Connection::default());
        let answers = tokio::spawn(self.clone().carry_answers(
            from_broker,
            to_client,
            Arc::clone(&shared),
        ));
        self.carry_requests(from_client, to_broker, &shared).await;
        // The broker answers what it has, and closes its side.
        let _ = tokio::time::timeout(Duration::from_secs(5), answers).await;
    }

    async fn carry_requests(
        &self,
        mut from_client: OwnedReadHalf,
        mut to_broker: OwnedWriteHalf,
        shared: &Connection,
    ) {
        // Requests are read ahead, so that those that a client has sent before it closed its
        // connection arrive late and are not lost.
        let (queue, mut queued) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(frame) = frame(&mut from_client).await {
                if queue.send(frame).is_err() {
                    break;
                }
            }
        });
        while let Some(mut request) = queued.recv().await {
            let is_produce = request[4..6] == PRODUCE;
            let fate = if is_produce {
                self.plan().next()
            } else {
                Fate::Pass
            };
            match fate {
                Fate::Pass => {}
                Fate::Delay(by) => tokio::time::sleep(by).await,
                Fate::Corrupt => damage(&mut request),
                Fate::RefuseForNow | Fate::Refuse(_) => {
                    let code = match fate {
                        Fate::Refuse(code) => code,
                        _ => PASSING[self.plan().rng.usize(0..PASSING.len())],
                    };
                    shared.shown.lock().unwrap().insert(id(&request), code);
                    damage(&mut request);
                }
                Fate::CutBefore => break,
                Fate::Half => {
                    let half = request.len() / 2;
                    let _ = to_broker.write_all(&request[..half]).await;
                    break;
                }
                Fate::CutAfter => shared.is_mute.store(true, Ordering::SeqCst),
            }
            if to_broker.write_all(&request).await.is_err() {
                break;
            }
        }
    }

    async fn carry_answers(
        self,
        mut from_broker: OwnedReadHalf,
        mut to_client: OwnedWriteHalf,
        shared: Arc<Connection>,
    ) {
        while let Some(mut answer) = frame(&mut from_broker).await {
            if shared.is_mute.load(Ordering::SeqCst) {
                // The client sees a closed connection. Requests that it has sent still arrive.
                let _ = to_client.shutdown().await;
                continue;
            }
            let code = shared.shown.lock().unwrap().remove(&id_of_answer(&answer));
            if let Some(code) = code {
                show(&mut answer, code);
            }
            self.rename_broker(&mut answer);
            if to_client.write_all(&answer).await.is_err() {
                break;
            }
        }
    }

    /// Replaces the port of the broker, which is four bytes after its host, by that of the proxy.
    fn rename_broker(&self, answer: &mut [u8]) {
        let (host, port) = self.0.broker.rsplit_once(':').unwrap();
        let [of_broker, of_proxy] =
            [port.parse().unwrap(), self.0.port].map(|port: u16| u32::from(port).to_be_bytes());
        for host in [host, "localhost", "127.0.0.1"] {
            let mut at = 0;
            while let Some(found) = position(&answer[at..], host.as_bytes()) {
                let port = at + found + host.len();
                if answer.get(port..port + 4) == Some(&of_broker) {
                    answer[port..port + 4].copy_from_slice(&of_proxy);
                }
                at = port;
            }
        }
    }
}

/// The state that both directions of a connection share.
#[derive(Debug, Default)]
struct Connection {
    /// The codes to show in the answers to these requests.
    shown: Mutex<HashMap<[u8; 4], i16>>,
    is_mute: AtomicBool,
}

/// Reads one frame, with the four bytes of its length.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await.ok()?;
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    frame.resize(4 + length, 0);
    stream.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}

/// Returns the correlation id of a request, which comes after its length, key and version.
fn id(request: &[u8]) -> [u8; 4] {
    request[8..12].try_into().unwrap()
}

fn id_of_answer(answer: &[u8]) -> [u8; 4] {
    answer[4..8].try_into().unwrap()
}

/// Flips bits in the last record, so that the checksum of its batch does not match.
fn damage(request: &mut [u8]) {
    let at = request.len() - 8;
    request[at] ^= 0x55;
}

/// Writes another code into the answer to a damaged batch. The code comes after the topic's name,
/// the number of partitions in one byte, and the partition.
fn show(answer: &mut [u8], code: i16) {
    let at = position(answer, TOPIC.as_bytes()).expect("an answer names its topic");
    // A compact string begins with its length plus one.
    let name = usize::from(answer[at - 1]) - 1;
    let found = &mut answer[at + name + 1 + 4..][..2];
    // A batch of a producer that is unknown or fenced may be refused before its checksum is looked
    // at.
    if *found == CORRUPT_MESSAGE.to_be_bytes() {
        found.copy_from_slice(&code.to_be_bytes());
    }
}

fn position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|w| w == part)
}
