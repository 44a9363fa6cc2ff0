//! Two processes call a failing service through one distributed breaker.
use super::{Fleet, stored, until};
use foldstream_live::Role;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// The time for which the service keeps a probe waiting: many calls of the other process, and less
/// than the time after which that one may take over the right to probe.
const PROBE: Duration = Duration::from_secs(1);
/// The number of probes that are looked at.
const PROBES: usize = 4;

/// The service that the processes call, and what it has seen.
#[derive(Debug, Default)]
struct Service {
    is_well: bool,
    /// The time that an answer takes.
    answers_after: Duration,
    open: usize,
    most_open: usize,
    /// The callers, in the order of their calls.
    calls: Vec<String>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Service>>);

impl Shared {
    fn service(&self) -> MutexGuard<'_, Service> {
        self.0.lock().unwrap()
    }

    /// Serves until the test ends, and returns the address.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move { shared.answer(connection).await });
            }
        });
        address.to_string()
    }

    async fn answer(&self, connection: TcpStream) {
        let mut connection = BufReader::new(connection);
        let mut caller = String::new();
        connection.read_line(&mut caller).await.unwrap();
        let pause = {
            let mut service = self.service();
            service.calls.push(caller.trim().into());
            service.open += 1;
            service.most_open = service.most_open.max(service.open);
            service.answers_after
        };
        tokio::time::sleep(pause).await;
        let is_well = {
            let mut service = self.service();
            service.open -= 1;
            service.is_well
        };
        // The caller may be gone.
        let answer = if is_well { b"y" } else { b"n" };
        let _ = connection.write_all(answer).await;
    }

    /// Forgets what the service has seen.
    fn clear(&self) {
        let mut service = self.service();
        (service.most_open, service.calls) = (service.open, Vec::new());
    }
}

/// Returns the last state that each process has written down.
fn states(fleet: &Fleet) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(fleet.settings.moves()).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .map(|(instance, state)| (instance.into(), state.into()))
        .collect()
}

fn all_are(fleet: &Fleet, state: &str) -> bool {
    let states = states(fleet);
    states.len() == 2 && states.values().all(|known| known == state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn two_processes_probe_a_failing_service_one_at_a_time_and_both_close() {
    let shared = Shared::default();
    let mut fleet = Fleet::open("breaker", "", 0).await;
    fleet.settings.service = shared.serve().await;
    let workers = ["node-1", "node-2"].map(|instance| fleet.start(Role::Caller, instance));

    // Each finds the service failing, and then they agree who probes. Before they have read each
    // other's votes, each probes for itself.
    let mut leases = Vec::new();
    let have_agreed = async || {
        let rows = stored::breaker(&fleet, &fleet.settings.name).await;
        let votes = rows.keys().filter(|sort| sort.starts_with("vote/"));
        let is_quorum = votes.count() == 2;
        if let Some(revision) = rows.get("probe")
            && is_quorum
            && !leases.contains(revision)
        {
            leases.push(revision.clone());
        }
        leases.len() >= 3
    };
    until("the processes agree who probes", have_agreed).await;

    // From now on a call takes a while, during which the other process must not make one.
    shared.service().answers_after = PROBE;
    // A quick call may still be in hand.
    until("nothing is in hand", async || {
        let mut service = shared.service();
        let is_quiet = service.open == 0;
        if is_quiet {
            (service.most_open, service.calls) = (0, Vec::new());
        }
        is_quiet
    })
    .await;
    let are_made = async || shared.service().calls.len() > PROBES;
    until("probes are made", are_made).await;
    assert_eq!(shared.service().most_open, 1, "{:?}", shared.service());
    assert!(!states(&fleet).values().any(|state| state == "closed"));

    // The next probe finds the service well.
    shared.service().is_well = true;
    until("both processes close", async || all_are(&fleet, "closed")).await;
    let have_no_votes = async || {
        let rows = stored::breaker(&fleet, &fleet.settings.name).await;
        !rows.keys().any(|sort| sort.starts_with("vote/"))
    };
    until("the votes are deleted", have_no_votes).await;
    shared.service().answers_after = Duration::ZERO;
    shared.clear();
    let both_call = async || {
        let calls = &shared.service().calls;
        ["node-1", "node-2"]
            .iter()
            .all(|node| calls.iter().any(|caller| caller == node))
    };
    until("both processes call again", both_call).await;
    for worker in workers {
        worker.stop().await;
    }
}
