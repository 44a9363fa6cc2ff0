//! The seeds of a simulation, on all cores. A run that never comes to rest, or that keeps its
//! thread busy without end, fails with the number of its seed.
use std::{
    fmt::Debug,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The real time that a thread may be busy without such a moment. Most runs take a tenth of a
/// second in all.
const BUSY: Duration = Duration::from_secs(120);

/// The run of one thread.
#[derive(Debug)]
pub(crate) struct Watch {
    most: u64,
    seed: AtomicU64,
    moments: AtomicU64,
    longest: AtomicU64,
}

impl Watch {
    /// Creates a watch over runs that have at most so many moments at which their thread has
    /// nothing to do until the clock moves on.
    pub(crate) fn new(most: u64) -> Arc<Self> {
        let [seed, moments, longest] = Default::default();
        Arc::new(Self {
            most,
            seed,
            moments,
            longest,
        })
    }

    /// Runs a future on paused time, on this thread alone.
    ///
    /// # Panics
    /// If the future does not end within its moments.
    pub(crate) fn alone<T>(self: &Arc<Self>, seed: u64, future: impl Future<Output = T>) -> T {
        self.seed.store(seed, Ordering::Relaxed);
        self.moments.store(0, Ordering::Relaxed);
        let watch = self.clone();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true);
        runtime.on_thread_park(move || {
            let moments = watch.moments.fetch_add(1, Ordering::Relaxed);
            assert!(moments < watch.most, "seed {seed} does not come to rest");
        });
        let result = runtime.build().unwrap().block_on(future);
        let (_, moments) = self.place();
        self.longest.fetch_max(moments, Ordering::Relaxed);
        result
    }

    /// Returns the moments of the longest run.
    fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    fn place(&self) -> (u64, u64) {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (of(&self.seed), of(&self.moments))
    }
}

/// Runs seeds on all cores. `violation` runs one of them on a thread of its own, and returns the
/// history of a rule that was broken. `test` is the path of the test, and `most` limits the
/// [moments](Watch::new) of a run.
///
/// # Panics
/// With that history, and the command that repeats it. The other seeds are then left out.
pub(crate) fn run(
    test: &str,
    seeds: Range<u64>,
    most: u64,
    violation: impl Fn(&Arc<Watch>, u64) -> Option<String> + Sync,
) {
    let number = seeds.end - seeds.start;
    let next = AtomicU64::new(seeds.start);
    let run_seeds = &|watch: &Arc<Watch>| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return None;
            }
            if let Some(violated) = violation(watch, seed) {
                // The other threads need not run the rest.
                next.store(seeds.end, Ordering::Relaxed);
                return Some((seed, violated));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let watches: Vec<Arc<Watch>> = (0..threads).map(|_| Watch::new(most)).collect();
    let violated = std::thread::scope(|scope| {
        let threads = watches.iter();
        let threads = threads.map(|watch| scope.spawn(move || run_seeds(watch)));
        let threads: Vec<_> = threads.collect();
        guard(&watches, || threads.iter().all(|t| t.is_finished()));
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.collect::<Vec<_>>()
    });
    if let Some((seed, violated)) = violated.into_iter().flatten().next() {
        panic!(
            "{violated}\nseed {seed}: FOLDSTREAM_SEED={seed} cargo test -p foldstream --test it -- --exact {test}"
        );
    }
    let longest = watches.iter().map(|watch| watch.longest()).max();
    println!("{number} seeds, {longest:?} moments in the longest");
}

/// Ends this process if one of the threads is busy without end, until `is_over`. No test can end
/// such a thread by itself.
fn guard(watches: &[Arc<Watch>], is_over: impl Fn() -> bool) {
    let mut seen: Vec<_> = watches
        .iter()
        .map(|w| (w.place(), Instant::now()))
        .collect();
    while !is_over() {
        std::thread::sleep(Duration::from_millis(50));
        for (watch, (place, since)) in watches.iter().zip(&mut seen) {
            let now = watch.place();
            if now != *place {
                (*place, *since) = (now, Instant::now());
            }
            if since.elapsed() > BUSY {
                eprintln!("seed {} keeps its thread busy without end", now.0);
                std::process::abort();
            }
        }
    }
}

/// The history of a run, for the report of a seed that fails.
#[derive(Debug)]
pub(crate) struct Log {
    began: tokio::time::Instant,
    /// Everything that was noted, and the rules that were broken.
    told: Mutex<(Vec<String>, Vec<String>)>,
}

impl Log {
    pub(crate) fn new(began: tokio::time::Instant) -> Self {
        let told = Mutex::default();
        Self { began, told }
    }
    /// Notes what happens.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        let at = self.began.elapsed().as_millis();
        let line = format!("{at:>7} {}", what());
        self.told.lock().unwrap().0.push(line);
    }
    /// Notes that a rule was broken. A panic in a handler would only be a failed event.
    pub(crate) fn violated(&self, what: String) {
        self.note(|| format!("VIOLATED: {what}"));
        self.told.lock().unwrap().1.push(what);
    }
    /// Returns everything that was noted.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.told.lock().unwrap().0.clone()
    }
    /// Returns the rules that were broken, and the end of the history that led to them. `plan` is
    /// what was drawn for the run.
    pub(crate) fn violations(&self, plan: &impl Debug) -> Option<String> {
        let (notes, violations) = &*self.told.lock().unwrap();
        (!violations.is_empty()).then(|| {
            let notes = notes[notes.len().saturating_sub(4_000)..].join("\n");
            format!("{notes}\n{plan:?}\n{}", violations.join("\n"))
        })
    }
}

/// The life of a process in a run: in the end it is stopped, or killed in the middle of its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) length: Duration,
    pub(crate) is_killed: bool,
    /// The awaits between the end of that time and the kill.
    pub(crate) steps: u32,
}

impl Life {
    /// Waits until the process is told to stop, at the latest by `stop`.
    pub(crate) async fn until_stopped(self, stop: &CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.length), if !self.is_killed => {}
        }
    }
    /// Waits until the process is killed.
    pub(crate) async fn until_killed(self) {
        tokio::time::sleep(self.length).await;
        for _ in 0..self.steps {
            tokio::task::yield_now().await;
        }
    }
}
