//! One case as a value, and the function that runs it in a test.
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

/// The time that a generated test may take before it fails: 120 s.
pub const LIMIT: Duration = Duration::from_secs(120);

/// One rule of a port's contract, over `P`: an `Arc` of the port or of its fixture.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case<P> {
    /// The name of the rule, which is the name of the test.
    pub name: &'static str,
    /// The group that an adapter must declare to be tested for the rule, or `always` for a rule
    /// without a condition.
    pub group: &'static str,
    run: fn(P) -> BoxFuture<'static, ()>,
}

impl<P> Case<P> {
    #[doc(hidden)]
    pub const fn new(
        name: &'static str,
        group: &'static str,
        run: fn(P) -> BoxFuture<'static, ()>,
    ) -> Self {
        Self { name, group, run }
    }

    /// Runs the case on a port. The future panics if the rule does not hold.
    pub fn run(&self, port: P) -> BoxFuture<'static, ()> {
        (self.run)(port)
    }
}

impl<P> fmt::Debug for Case<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Case({}, {})", self.name, self.group)
    }
}

/// Runs one case on a fresh port, as a generated test does.
///
/// # Panics
/// If the rule does not hold, or if the case takes longer than [`LIMIT`].
pub fn run<P, F, C>(name: &str, fresh: F, case: impl FnOnce(P) -> C)
where
    F: Future<Output = P>,
    C: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime for the test");
    let limited = tokio::time::timeout;
    let outcome = runtime.block_on(
        AssertUnwindSafe(async { limited(LIMIT, async { case(fresh.await).await }).await })
            .catch_unwind(),
    );
    // A client that blocks a thread forever must not keep the test from failing.
    runtime.shutdown_timeout(Duration::from_secs(10));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(_)) => panic!("{name} took longer than {LIMIT:?}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// The groups of a contract that an adapter declares, and the number of cases that follow from
/// them.
///
/// The test `report` that the macro of each port generates prints it: `cargo test report --
/// --nocapture`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The port, named as its module.
    pub port: &'static str,
    /// The number of cases that are tests of the adapter, by group.
    pub present: BTreeMap<&'static str, usize>,
    /// The number of cases in groups that are not declared, by group. These generate no tests, so
    /// no test passes without having run.
    pub absent: BTreeMap<&'static str, usize>,
}

impl Report {
    /// Creates the report of these groups, out of all cases of a port.
    ///
    /// # Panics
    /// If a group has no cases.
    pub fn new<P>(port: &'static str, all: &[Case<P>], groups: &[&'static str]) -> Self {
        let (mut present, mut absent) = (BTreeMap::new(), BTreeMap::new());
        for case in all {
            let side = match groups.contains(&case.group) {
                true => &mut present,
                false => &mut absent,
            };
            *side.entry(case.group).or_default() += 1;
        }
        for group in groups {
            assert!(present.contains_key(group), "{port}: no case in {group}");
        }
        Self {
            port,
            present,
            absent,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |groups: &BTreeMap<&str, usize>| {
            let texts = groups.iter().map(|(group, n)| format!("{group} ({n})"));
            texts.collect::<Vec<_>>().join(", ")
        };
        write!(f, "{} contract: {}", self.port, list(&self.present))?;
        match self.absent.is_empty() {
            true => Ok(()),
            false => write!(f, "; not declared: {}", list(&self.absent)),
        }
    }
}

/// Generates the test that prints what an adapter declares.
#[doc(hidden)]
#[macro_export]
macro_rules! __contract_report {
    ({ $port:ident $fresh:path; $($attributes:tt)* } $($group:ident)*) => {
        #[test]
        $($attributes)*
        fn report() {
            let groups = [$(::core::stringify!($group)),*];
            let all = $crate::contract::$port::cases();
            let report = $crate::contract::Report::new(::core::stringify!($port), &all, &groups);
            ::std::println!("{report}");
        }
    };
}

/// Generates one test per case. The macro of each port calls it.
#[doc(hidden)]
#[macro_export]
macro_rules! __contract_tests {
    ($context:tt $group:ident [$($module:ident :: $case:ident,)*]) => {
        $($crate::__contract_test! { $context $case })*
    };
}

/// Generates the test of one case. It is separate from the list, since attributes and cases repeat
/// independently.
#[doc(hidden)]
#[macro_export]
macro_rules! __contract_test {
    ({ $port:ident $fresh:path; $($attributes:tt)* } $case:ident) => {
        #[test]
        $($attributes)*
        fn $case() {
            $crate::contract::run(
                ::core::stringify!($case),
                $crate::contract::$port::ready($fresh()),
                $crate::contract::$port::$case,
            );
        }
    };
}

/// Makes cases public in their port's module. A case that is not listed is dead code, which the
/// compiler reports.
macro_rules! publish_cases {
    ({} $group:ident [$($module:ident :: $case:ident,)*]) => {
        $(pub use $module::$case;)*
    };
}
pub(super) use publish_cases;

/// Collects cases into a list of values.
macro_rules! collect_cases {
    ({ $list:ident } $group:ident [$($module:ident :: $case:ident,)*]) => {
        $list.extend([$($crate::contract::Case::new(
            stringify!($case),
            stringify!($group),
            |port| Box::pin($module::$case(port)),
        ),)*]);
    };
}
pub(super) use collect_cases;
