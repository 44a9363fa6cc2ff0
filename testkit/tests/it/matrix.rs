//! Runs all cases of a contract on sound and on broken adapters. A case that no broken adapter
//! fails proves nothing.
use foldstream_testkit::contract::Case;
use futures::FutureExt;
use std::{
    cell::Cell,
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{
        Mutex, Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// An adapter under test, sound or broken.
pub(crate) struct Suspect<P> {
    name: &'static str,
    /// The groups of cases that the adapter would declare.
    groups: &'static [&'static str],
    fresh: fn() -> P,
    /// The cases of the rule that the adapter breaks; empty for a sound adapter.
    rejected_by: &'static [&'static str],
    /// Cases of other rules that the adapter fails too, because they rest on that rule.
    and_by: &'static [&'static str],
    /// Cases that the adapter fails or passes, depending on the random ids that they make.
    perhaps_by: &'static [&'static str],
}

impl<P> Suspect<P> {
    /// Creates a suspect that is named after its sabotage.
    pub(crate) fn new<S>(
        groups: &'static [&'static str],
        fresh: fn() -> P,
        rejected_by: &'static [&'static str],
    ) -> Self {
        Self::named(std::any::type_name::<S>(), groups, fresh, rejected_by)
    }
    pub(crate) const fn named(
        name: &'static str,
        groups: &'static [&'static str],
        fresh: fn() -> P,
        rejected_by: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            groups,
            fresh,
            rejected_by,
            and_by: &[],
            perhaps_by: &[],
        }
    }
    pub(crate) const fn and_by(mut self, cases: &'static [&'static str]) -> Self {
        self.and_by = cases;
        self
    }
    pub(crate) const fn perhaps_by(mut self, cases: &'static [&'static str]) -> Self {
        self.perhaps_by = cases;
        self
    }
    fn all(&self) -> impl Iterator<Item = &'static str> {
        self.rejected_by.iter().chain(self.and_by).copied()
    }
}

/// The time on the paused clock that a case may take. Waiting costs no real time.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs every case on every suspect.
///
/// It asserts that:
/// - a suspect fails exactly the cases that are listed for it, and passes all others; only those
///   that depend on random ids may go either way,
/// - a broken suspect passes most cases, so that it breaks a rule and not everything,
/// - every case rejects an adapter that breaks its own rule.
///
/// A case that becomes too strict or too lax therefore fails this test.
pub(crate) fn assert_every_case_is_needed<P: 'static>(cases: &[Case<P>], suspects: &[Suspect<P>]) {
    let known: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    let perhaps = suspects.iter().flat_map(|s| s.perhaps_by).copied();
    let all: BTreeSet<_> = suspects
        .iter()
        .flat_map(Suspect::all)
        .chain(perhaps)
        .collect();
    assert_eq!(all.difference(&known).next(), None, "listed, but no case");
    let listed: BTreeSet<_> = suspects
        .iter()
        .flat_map(|s| s.rejected_by)
        .copied()
        .collect();
    let unneeded: Vec<_> = known.difference(&listed).collect();
    assert!(
        unneeded.is_empty(),
        "no broken adapter is listed for {unneeded:#?}"
    );

    let complaints = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(suspect) = suspects.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let found = complaints_about(suspect, cases);
                    complaints.lock().unwrap().extend(found);
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn complaints_about<P: 'static>(suspect: &Suspect<P>, cases: &[Case<P>]) -> Vec<String> {
    let (mut complaints, mut run, mut failed) = (Vec::new(), 0, 0);
    let mut missing: BTreeSet<_> = suspect.all().collect();
    for case in cases {
        if case.group != "always" && !suspect.groups.contains(&case.group) {
            continue;
        }
        run += 1;
        let Err(reason) = outcome(case, suspect.fresh) else {
            continue;
        };
        failed += 1;
        if !missing.remove(case.name) && !suspect.perhaps_by.contains(&case.name) {
            let (name, case) = (suspect.name, case.name);
            complaints.push(format!(
                "{name} fails {case}, which is not listed: {reason}"
            ));
        }
    }
    for case in missing {
        complaints.push(format!("{} is not rejected by {case}", suspect.name));
    }
    if failed * 2 > run {
        let name = suspect.name;
        complaints.push(format!(
            "{name} fails {failed} of {run}: it is broken beyond its rule"
        ));
    }
    complaints
}

thread_local! {
    static IS_SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Silences panics of cases, which are results here. Panics of other tests in this binary are still
/// printed.
fn silence_panics_of_cases() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_SILENT.get() {
                usual(panic);
            }
        }));
    });
}

/// Runs a case alone on this thread, with a paused clock: deterministic, and without waiting.
fn outcome<P>(case: &Case<P>, fresh: fn() -> P) -> Result<(), String> {
    silence_panics_of_cases();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    IS_SILENT.set(true);
    let outcome = runtime.block_on(
        AssertUnwindSafe(async { tokio::time::timeout(LIMIT, case.run(fresh())).await })
            .catch_unwind(),
    );
    drop(runtime);
    IS_SILENT.set(false);
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("took too long".into()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).into()));
            Err(text.unwrap_or_else(|| "a panic without text".into()))
        }
    }
}
