//! The seeds of a simulation, on all cores. A run that never comes to rest, or that keeps its
//! thread busy without end, fails with the number of its seed.
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The most moments of one run at which its thread has nothing to do until the clock moves on. The
/// longest of the short runs has fewer than 20,000.
const MOMENTS: u64 = 200_000;

/// The real time that a thread may be busy without such a moment. Most runs take a tenth of a
/// second in all.
const BUSY: Duration = Duration::from_secs(120);

/// The run of one thread.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seed: AtomicU64,
    moments: AtomicU64,
    longest: AtomicU64,
}

impl Watch {
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
            assert!(moments < MOMENTS, "seed {seed} does not come to rest");
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
/// history of a rule that was broken. `test` is the path of the test.
///
/// # Panics
/// With that history, and the command that repeats it. The other seeds are then left out.
pub(crate) fn run(
    test: &str,
    seeds: Range<u64>,
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
    let watches: Vec<Arc<Watch>> = (0..threads).map(|_| Arc::default()).collect();
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
