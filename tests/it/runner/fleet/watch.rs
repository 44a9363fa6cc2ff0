//! The bounds of a run: one that never comes to rest, or that keeps its thread busy without end,
//! fails with the number of its seed.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The most moments of one run at which its thread has nothing to do until the clock moves on. The
/// longest of the short runs has fewer than 2,000.
const MOMENTS: u64 = 20_000;

/// The real time that a thread may be busy without such a moment. Most runs take a tenth of a
/// second in all.
const BUSY: Duration = Duration::from_secs(120);

/// The run of one thread.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seed: AtomicU64,
    moments: AtomicU64,
    longest: AtomicU64,
}

impl Watch {
    /// Runs a future on paused time, on this thread alone.
    ///
    /// # Panics
    /// If the future does not end within its moments.
    pub(super) fn alone<T>(self: &Arc<Self>, seed: u64, future: impl Future<Output = T>) -> T {
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
    pub(super) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    fn place(&self) -> (u64, u64) {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (of(&self.seed), of(&self.moments))
    }
}

/// Ends this process if one of the threads is busy without end, until `is_over`. No test can end
/// such a thread by itself.
pub(super) fn guard(watches: &[Arc<Watch>], is_over: impl Fn() -> bool) {
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
