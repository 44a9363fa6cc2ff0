//! Several runs on a model of librdkafka and of a partition's leader, from a seed.
//!
//! The model knows what makes runs unsafe: a leader that accepts any first number of a producer
//! that it does not know, refusals for passing reasons, lost answers, a client that takes the
//! success of a later request as a proof of an earlier one, and requests of a retired producer that
//! arrive late. Whatever happens, the first occurrences of each stream are in order, and everything
//! that was acknowledged is in the log.
use super::{
    pipeline::{Ending, Next, Pipeline},
    priming::{Admission, PRIMED_FOR, Priming},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

const STREAMS: usize = 3;
const VERSIONS: usize = 12;
const IN_FLIGHT: usize = 5;

/// A version of a stream.
type Record = (usize, usize);

/// The rules of the adapter that a test can take out.
#[derive(Clone, Copy, Debug)]
struct Rules {
    primes: bool,
    wants_offsets: bool,
}
const ALL: Rules = Rules {
    primes: true,
    wants_offsets: true,
};

#[derive(Clone, Debug)]
struct Request {
    producer: usize,
    first: usize,
    records: Vec<Record>,
}

/// The leader of the partition: its log, and the next sequence number of each producer.
#[derive(Debug, Default)]
struct Leader {
    log: Vec<Record>,
    next: BTreeMap<usize, usize>,
}

impl Leader {
    /// Returns the offset of the first record, -1 for a duplicate, or `None` for a refusal.
    fn store(&mut self, request: &Request) -> Option<i64> {
        let end = request.first + request.records.len();
        match self.next.get(&request.producer) {
            Some(&next) if end <= next => return Some(-1),
            Some(&next) if request.first != next => return None,
            _ => {}
        }
        self.next.insert(request.producer, end);
        let offset = self.log.len() as i64;
        self.log.extend(&request.records);
        Some(offset)
    }
}

/// A client with its connection. Acknowledgements are offsets by the sequence number of the record.
#[derive(Debug, Default)]
struct Client {
    id: usize,
    records: Vec<Record>,
    sent: usize,
    /// Requests whose answers are not there yet, and those that must be sent again.
    on_their_way: VecDeque<Request>,
    again: VecDeque<Request>,
    acknowledged: BTreeMap<usize, i64>,
    priming: Priming,
    is_retired: bool,
}

impl Client {
    fn send(&mut self, rng: &mut fastrand::Rng) {
        if self.on_their_way.is_empty()
            && let Some(request) = self.again.pop_front()
        {
            self.on_their_way.push_back(request);
        } else if self.again.is_empty()
            && self.on_their_way.len() < IN_FLIGHT
            && self.sent < self.records.len()
        {
            let most = (self.records.len() - self.sent).min(3);
            let end = self.sent + rng.usize(1..=most);
            self.on_their_way.push_back(Request {
                producer: self.id,
                first: self.sent,
                records: self.records[self.sent..end].to_vec(),
            });
            self.sent = end;
        }
    }

    fn stored(&mut self, request: &Request, offset: i64) {
        // The success proves all earlier requests, as librdkafka sees it.
        self.again.retain(|earlier| earlier.first > request.first);
        for earlier in 0..request.first {
            self.acknowledged.entry(earlier).or_insert(-1001);
        }
        for n in 0..request.records.len() {
            let offset = if offset < 0 { -1001 } else { offset + n as i64 };
            self.acknowledged.entry(request.first + n).or_insert(offset);
        }
    }
}

/// One stream, whose publisher sends runs until all versions are acknowledged.
#[derive(Debug, Default)]
struct Stream {
    durable: usize,
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    client: usize,
    is_alone: bool,
    pipeline: Pipeline<()>,
    /// The sequence numbers of the records in flight.
    in_flight: VecDeque<usize>,
}

#[derive(Debug, Default)]
struct Seen {
    refused: u64,
    retired: u64,
    late: u64,
    without_offset: u64,
    dropped: u64,
    primed_again: u64,
}

struct World {
    rules: Rules,
    rng: fastrand::Rng,
    now: Instant,
    leader: Leader,
    clients: Vec<Client>,
    streams: Vec<Stream>,
    seen: Seen,
}

impl World {
    fn new(seed: u64, rules: Rules) -> Self {
        Self {
            rules,
            rng: fastrand::Rng::with_seed(seed),
            now: Instant::now(),
            leader: Leader::default(),
            clients: vec![Client::default()],
            streams: (0..STREAMS).map(|_| Stream::default()).collect(),
            seen: Seen::default(),
        }
    }

    fn is_done(&self) -> bool {
        self.streams.iter().all(|s| s.durable == VERSIONS)
    }

    fn step(&mut self, is_calm: bool) {
        self.now += Duration::from_millis(self.rng.u64(0..40));
        if !is_calm && self.rng.u32(0..300) == 0 {
            self.now += PRIMED_FOR;
        }
        match self.rng.u32(0..10) {
            0..4 => {
                let stream = self.rng.usize(0..STREAMS);
                self.drive(stream, is_calm);
            }
            4..7 => {
                let current = self.clients.len() - 1;
                self.clients[current].send(&mut self.rng);
            }
            _ => {
                let client = self.rng.usize(0..self.clients.len());
                self.arrive(client, is_calm);
            }
        }
    }

    /// Lets the oldest request of a client arrive at the leader, and its answer at the client.
    fn arrive(&mut self, client: usize, is_calm: bool) {
        let client = &mut self.clients[client];
        let Some(request) = client.on_their_way.pop_front() else {
            return;
        };
        self.seen.late += u64::from(client.is_retired);
        let fate = if is_calm { 9 } else { self.rng.u32(0..10) };
        // 0 and 1: refused for a passing reason. 2: the answer is lost.
        let answer = if fate < 2 {
            self.seen.refused += 1;
            None
        } else {
            self.leader.store(&request)
        };
        match answer {
            Some(offset) if fate != 2 => client.stored(&request, offset),
            _ => client.again.push_back(request),
        }
    }

    fn retire(&mut self, client: usize) {
        let old = &mut self.clients[client];
        if old.is_retired {
            return;
        }
        // What is on its way may still arrive. The rest is purged.
        (old.is_retired, old.sent) = (true, old.records.len());
        old.again.clear();
        self.seen.retired += 1;
        let id = self.clients.len();
        self.clients.push(Client {
            id,
            ..Client::default()
        });
    }

    fn drive(&mut self, index: usize, is_calm: bool) {
        if self.streams[index].durable == VERSIONS {
            return;
        }
        let Some(mut run) = self.streams[index].run.take().or_else(|| self.begin(index)) else {
            return;
        };
        let durable = self.streams[index].durable;
        match run.pipeline.next() {
            Next::Queue(n) => {
                let client = &mut self.clients[run.client];
                if client.is_retired {
                    run.pipeline.left();
                } else {
                    run.in_flight.push_back(client.records.len());
                    client.records.push((index, durable + n + 1));
                    run.pipeline.queued();
                }
            }
            Next::Await(_) => {
                let client = &mut self.clients[run.client];
                let oldest = run.in_flight.front().copied().unwrap();
                if let Some(&offset) = client.acknowledged.get(&oldest) {
                    run.in_flight.pop_front();
                    self.seen.without_offset += u64::from(offset < 0);
                    let taken = if self.rules.wants_offsets {
                        offset
                    } else {
                        offset.max(0)
                    };
                    if run.pipeline.acknowledged(taken, || ()) {
                        client.priming.acknowledged(self.now);
                        run.is_alone = false;
                    }
                } else if client.is_retired {
                    run.pipeline.purged();
                } else if !is_calm && self.rng.u32(0..60) == 0 {
                    run.pipeline.failed(());
                } else if !is_calm && self.rng.u32(0..60) == 0 {
                    // The future of the run is dropped. What is in flight stays there.
                    if run.is_alone {
                        client.priming.gave_up();
                    }
                    self.streams[index].durable += run.pipeline.end().0;
                    self.seen.dropped += 1;
                    return;
                }
            }
            Next::Pause => run.pipeline.paused(),
            Next::End => {
                if run.is_alone {
                    self.clients[run.client].priming.gave_up();
                }
                let (acknowledged, _, ending) = run.pipeline.end();
                self.streams[index].durable += acknowledged;
                if matches!(ending, Ending::Failed(())) {
                    self.retire(run.client);
                }
                return;
            }
        }
        self.streams[index].run = Some(run);
    }

    fn begin(&mut self, index: usize) -> Option<Run> {
        let client = self.clients.len() - 1;
        let was_known = matches!(self.clients[client].priming, Priming::Known(_));
        let admission = if self.rules.primes {
            self.clients[client].priming.admit(self.now)
        } else {
            Admission::Freely
        };
        if admission == Admission::Wait {
            return None;
        }
        let is_alone = admission == Admission::Alone;
        self.seen.primed_again += u64::from(is_alone && was_known);
        Some(Run {
            client,
            is_alone,
            pipeline: Pipeline::new(VERSIONS - self.streams[index].durable, admission),
            in_flight: VecDeque::new(),
        })
    }

    /// Returns the first occurrences of a stream in the log.
    fn first_occurrences(&self, stream: usize) -> Vec<usize> {
        let mut first = Vec::new();
        for &(of, version) in &self.leader.log {
            if of == stream && !first.contains(&version) {
                first.push(version);
            }
        }
        first
    }
}

/// The number of streams with lost records, and of streams that are out of order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wrong {
    lost: usize,
    disordered: usize,
}

/// Runs one seed to its end.
fn run(seed: u64, rules: Rules) -> (Seen, Wrong) {
    let mut world = World::new(seed, rules);
    for step in 0..100_000 {
        // The later steps are calm, so that everything ends.
        world.step(step > 2_000);
        if world.is_done() && world.clients.iter().all(|c| c.on_their_way.is_empty()) {
            break;
        }
    }
    assert!(world.is_done(), "seed {seed} does not end");
    let mut wrong = Wrong::default();
    for stream in 0..STREAMS {
        let first = world.first_occurrences(stream);
        wrong.lost += usize::from(first.len() < VERSIONS);
        wrong.disordered += usize::from(!first.is_sorted());
    }
    (world.seen, wrong)
}

#[test]
fn first_occurrences_are_in_order_and_nothing_acknowledged_is_lost() {
    let mut sum = Seen::default();
    for seed in 0..2_000 {
        let (seen, wrong) = run(seed, ALL);
        assert_eq!(wrong, Wrong::default(), "seed {seed}");
        sum.refused += seen.refused;
        sum.retired += seen.retired;
        sum.late += seen.late;
        sum.without_offset += seen.without_offset;
        sum.dropped += seen.dropped;
        sum.primed_again += seen.primed_again;
    }
    println!("{sum:?}");
    let met = [
        sum.refused,
        sum.retired,
        sum.late,
        sum.without_offset,
        sum.dropped,
        sum.primed_again,
    ];
    assert!(met.iter().all(|n| *n > 0), "{sum:?}");
}

/// The model is as treacherous as real brokers: each rule that is taken out breaks streams.
#[test]
fn without_priming_streams_are_disordered_and_without_offsets_acknowledged_records_are_lost() {
    let wrong_of = |rules| {
        let wrong = (0..300).map(|seed| run(seed, rules).1);
        wrong.fold(Wrong::default(), |sum, wrong| Wrong {
            lost: sum.lost + wrong.lost,
            disordered: sum.disordered + wrong.disordered,
        })
    };
    let unprimed = Rules {
        primes: false,
        ..ALL
    };
    let trusting = Rules {
        wants_offsets: false,
        ..unprimed
    };
    let (unprimed, trusting) = (wrong_of(unprimed), wrong_of(trusting));
    println!("of 900 streams: {unprimed:?} without priming, {trusting:?} also without offsets");
    // The rule about offsets alone prevents losses.
    assert!(
        unprimed.disordered > 0 && unprimed.lost == 0,
        "{unprimed:?}"
    );
    assert!(trusting.lost > 0, "{trusting:?}");
}
