//! The works that load streams.
use super::{
    catalogue::{ROUND_TRIPS, States},
    endpoint::Cost,
    sides::{Bench, Samples, Sides, add, add_costs, add_times, assert_state},
};
use crate::{
    BenchError,
    account::{Account, AccountEvent, AccountId, Deposit},
};
use foldstream::{Repository, SnapshotPolicy, StreamHead};
use std::time::{Duration, Instant};

/// The number of events between two snapshots.
const SNAPSHOT_EVERY: u64 = 100;
/// The number of events after the stream's snapshot.
const AFTER_SNAPSHOT: u64 = 20;

impl Bench<'_> {
    pub(super) async fn load(
        &mut self,
        commits: u64,
        each: u64,
        samples: &mut Samples,
    ) -> Result<(), BenchError> {
        let id = self.ids(1).remove(0);
        let account = AccountId::from(&*id);
        let events = commits * each;
        fill(&self.direct.accounts(States::None), &account, commits, each).await?;
        for raw in self.direct.by_hand() {
            raw.fill(&id, events).await?;
        }

        let sides = self.metered.clone();
        self.endpoint.take_cost();
        self.our_load(&sides, &account, events).await?;
        let ours = self.endpoint.take_cost();
        let mut by_hand = [Cost::default(); 2];
        for (raw, cost) in sides.by_hand().into_iter().zip(&mut by_hand) {
            raw.load(&id).await?;
            *cost = self.endpoint.take_cost();
        }
        add_costs(samples, ours, by_hand);

        let sides = self.direct.clone();
        // The first round warms up and is not counted.
        for round in 0..=self.size.rounds {
            let started = Instant::now();
            self.our_load(&sides, &account, events).await?;
            let ours = started.elapsed();
            let mut by_hand = [Duration::ZERO; 2];
            for (raw, took) in sides.by_hand().into_iter().zip(&mut by_hand) {
                let started = Instant::now();
                assert_state(raw.load(&id).await?.balance, events)?;
                *took = started.elapsed();
            }
            if round > 0 {
                add_times(samples, ours, by_hand);
            }
        }
        Ok(())
    }

    async fn our_load(&self, sides: &Sides, id: &AccountId, events: u64) -> Result<(), BenchError> {
        let accounts = sides.accounts(States::None);
        let loaded = accounts.load(id).await.map_err(BenchError::other)?;
        self.more(sides, &accounts, id, 1).await?;
        assert_state(loaded.state().balance, events)
    }

    pub(super) async fn load_with_snapshot(
        &mut self,
        samples: &mut Samples,
    ) -> Result<(), BenchError> {
        let id = self.ids(1).remove(0);
        let account = AccountId::from(&*id);
        let policy = SnapshotPolicy::every(SNAPSHOT_EVERY);
        let with_snapshots = |sides: &Sides| {
            let snapshots = sides.stores.snapshot_store();
            sides
                .accounts(States::None)
                .with_snapshots(snapshots, policy)
        };
        let accounts = with_snapshots(&self.direct);
        for n in 1..=SNAPSHOT_EVERY + AFTER_SNAPSHOT {
            let done = accounts.execute(&account, Deposit::number(n)).await;
            done.map_err(BenchError::other)?;
        }
        accounts.close().await;
        // A stream of one event, whose query is one round trip.
        let other = self.ids(1).remove(0);
        let (accounts, raw) = (with_snapshots(&self.distant), &self.distant.lean);
        raw.put(&other, 1, &Deposit::number(1)).await?;
        for round in 0..=self.size.rounds {
            let started = Instant::now();
            let loaded = accounts.load(&account).await.map_err(BenchError::other)?;
            if self.sabotage.is_some() {
                // A busy machine would hide a single additional load.
                for _ in 0..4 {
                    raw.load(&other).await?;
                }
            }
            let ours = started.elapsed();
            assert_state(loaded.state().balance, SNAPSHOT_EVERY + AFTER_SNAPSHOT)?;
            let started = Instant::now();
            raw.load(&other).await?;
            if round > 0 {
                let [ours, theirs] = [ours, started.elapsed()].map(|t| t.as_secs_f64() * 1e3);
                add(samples, ROUND_TRIPS, ours, theirs);
            }
        }
        Ok(())
    }
}

async fn fill(
    accounts: &Repository<Account>,
    id: &AccountId,
    commits: u64,
    each: u64,
) -> Result<(), BenchError> {
    let stream = Repository::<Account>::stream_id(id).map_err(BenchError::other)?;
    let mut head = StreamHead::empty(stream);
    for commit in 0..commits {
        let numbers = commit * each + 1..=(commit + 1) * each;
        let events: Vec<_> = numbers
            .map(|n| AccountEvent::Deposited(Deposit::number(n)))
            .collect();
        let appended = accounts.append(id, head, &events).await;
        head = appended.map_err(BenchError::other)?;
    }
    Ok(())
}
