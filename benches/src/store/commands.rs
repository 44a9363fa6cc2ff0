//! The works that execute commands.
use super::{
    catalogue::{
        CLEAR_WRITE_UNITS, FIRST_WRITE_UNITS, READ_UNITS, ROUND_TRIPS, States, TIME_VS_LEAN,
        TIME_VS_SAME_FACTS, TIME_VS_UNCHECKED, TRIPS, WRITE_UNITS,
    },
    endpoint::Cost,
    raw::Raw,
    sides::{Bench, Samples, Sides, add, add_costs, add_times, assert_state},
};
use crate::{
    BenchError,
    account::{Account, AccountId, Deposit, Deposits},
};
use foldstream::{
    Metadata, Repository, StreamHead,
    ports::{CommitKey, EventStore as _, Segment},
};
use futures::future::try_join_all;
use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// The commands per stream and round, besides the one that creates the stream.
const COMMANDS: u64 = 9;
/// The time for which command ids are remembered.
const RETENTION: Duration = Duration::from_secs(3600);

/// Executes nine commands on a stream that has one event.
async fn commands_of(accounts: &Repository<Account>, id: &str) -> Result<(), BenchError> {
    let id = AccountId::from(id);
    for n in 2..=COMMANDS + 1 {
        let done = accounts.execute(&id, Deposit::number(n)).await;
        assert_state(done.map_err(BenchError::other)?.state().balance, n)?;
    }
    Ok(())
}

/// Executes nine commands by hand on a stream that has one event.
async fn their_commands(raw: &Raw, id: &str) -> Result<(), BenchError> {
    for n in 2..=COMMANDS + 1 {
        let state = raw.execute(id, &Deposit::number(n)).await?;
        assert_state(state.balance, n)?;
    }
    Ok(())
}

/// Puts ten deposits by hand.
async fn their_ten(raw: &Raw, id: &str, first: u64) -> Result<(), BenchError> {
    for n in first..first + 10 {
        raw.put(id, n, &Deposit::of_80_bytes(n)).await?;
    }
    Ok(())
}

/// Creates streams with one event on all sides, and fills the cache if there is one.
async fn begin(
    sides: &Sides,
    accounts: &Repository<Account>,
    ids: &[String],
) -> Result<(), BenchError> {
    for id in ids {
        let account = AccountId::from(&**id);
        let done = accounts.execute(&account, Deposit::number(1)).await;
        done.map_err(BenchError::other)?;
        for raw in sides.by_hand() {
            raw.put(id, 1, &Deposit::number(1)).await?;
        }
    }
    Ok(())
}

impl Bench<'_> {
    /// Executes nine commands on a stream that has one event, and the additional calls of a
    /// sabotaged work.
    async fn our_commands(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &str,
    ) -> Result<(), BenchError> {
        let id = AccountId::from(id);
        for n in 2..=COMMANDS + 1 {
            let done = accounts.execute(&id, Deposit::number(n)).await;
            let done = done.map_err(BenchError::other)?;
            assert_state(done.state().balance, n)?;
            self.more(sides, accounts, &id, n).await?;
        }
        Ok(())
    }

    pub(super) async fn commands(
        &mut self,
        states: States,
        at_once: u64,
        samples: &mut Samples,
    ) -> Result<(), BenchError> {
        let sides = self.metered.clone();
        let accounts = sides.accounts(states);
        let ids = self.ids(self.size.streams);
        begin(&sides, &accounts, &ids).await?;
        for id in &ids {
            self.endpoint.take_cost();
            self.our_commands(&sides, &accounts, id).await?;
            let ours = self.endpoint.take_cost() / COMMANDS as f64;
            let mut by_hand = [Cost::default(); 2];
            for (raw, cost) in sides.by_hand().into_iter().zip(&mut by_hand) {
                their_commands(raw, id).await?;
                *cost = self.endpoint.take_cost() / COMMANDS as f64;
            }
            add_costs(samples, ours, by_hand);
        }

        let sides = self.direct.clone();
        // The first round warms up and is not counted.
        for round in 0..=self.size.rounds {
            let accounts = sides.accounts(states);
            let ids = self.ids(self.size.streams.max(at_once));
            begin(&sides, &accounts, &ids).await?;
            let (mut ours, mut by_hand) = (Duration::ZERO, [Duration::ZERO; 2]);
            for ids in ids.chunks(usize::try_from(at_once).unwrap_or(1)) {
                let started = Instant::now();
                let all = ids
                    .iter()
                    .map(|id| self.our_commands(&sides, &accounts, id));
                try_join_all(all).await?;
                ours += started.elapsed();
                for (raw, took) in sides.by_hand().into_iter().zip(&mut by_hand) {
                    let started = Instant::now();
                    try_join_all(ids.iter().map(|id| their_commands(raw, id))).await?;
                    *took += started.elapsed();
                }
            }
            if round > 0 {
                add_times(samples, ours, by_hand);
            }
        }
        Ok(())
    }

    /// Compares two repositories of ours, of which only one checks what it encodes.
    pub(super) async fn encode_check(&mut self, samples: &mut Samples) -> Result<(), BenchError> {
        let sides = self.direct.clone();
        // The first round warms up and is not counted.
        for round in 0..=self.size.rounds {
            let checked = sides.accounts(States::Cached);
            let unchecked = sides.accounts(States::Cached).without_encode_check();
            let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
            for (ids, accounts, took) in [
                (self.ids(self.size.streams), &checked, &mut ours),
                (self.ids(self.size.streams), &unchecked, &mut theirs),
            ] {
                begin(&sides, accounts, &ids).await?;
                let started = Instant::now();
                for id in &ids {
                    commands_of(accounts, id).await?;
                }
                *took = started.elapsed();
            }
            let (id, started) = (AccountId::from("sabotage"), Instant::now());
            for n in 0..self.size.streams * COMMANDS {
                self.more(&sides, &checked, &id, n).await?;
            }
            ours += started.elapsed();
            if round > 0 {
                add(samples, TIME_VS_UNCHECKED, in_ms(ours), in_ms(theirs));
            }
        }
        Ok(())
    }

    pub(super) async fn ten_events(&mut self, samples: &mut Samples) -> Result<(), BenchError> {
        let sides = self.metered.clone();
        let accounts = sides.accounts(States::Cached);
        let ids = self.ids(self.size.streams);
        begin(&sides, &accounts, &ids).await?;
        for id in &ids {
            self.endpoint.take_cost();
            self.our_ten(&sides, &accounts, id, 2).await?;
            let ours = self.endpoint.take_cost();
            let mut by_hand = [Cost::default(); 2];
            for (raw, cost) in sides.by_hand().into_iter().zip(&mut by_hand) {
                their_ten(raw, id, 2).await?;
                *cost = self.endpoint.take_cost();
            }
            add_costs(samples, ours, by_hand);
        }

        let sides = self.direct.clone();
        let accounts = sides.accounts(States::Cached);
        let ids = self.ids(self.size.streams);
        begin(&sides, &accounts, &ids).await?;
        for round in 0..=self.size.rounds as u64 {
            let first = round * 10 + 2;
            let (mut ours, mut by_hand) = (Duration::ZERO, [Duration::ZERO; 2]);
            for id in &ids {
                let started = Instant::now();
                self.our_ten(&sides, &accounts, id, first).await?;
                ours += started.elapsed();
                for (raw, took) in sides.by_hand().into_iter().zip(&mut by_hand) {
                    let started = Instant::now();
                    their_ten(raw, id, first).await?;
                    *took += started.elapsed();
                }
            }
            if round > 0 {
                add_times(samples, ours, by_hand);
            }
        }
        Ok(())
    }

    /// Makes ten deposits in one command.
    async fn our_ten(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &str,
        first: u64,
    ) -> Result<(), BenchError> {
        let id = AccountId::from(id);
        let command = Deposits((first..first + 10).map(Deposit::of_80_bytes).collect());
        let done = accounts.execute(&id, command).await;
        let done = done.map_err(BenchError::other)?;
        // One additional read would hardly be seen beside ten puts.
        let times = if self.is_sabotaged(&[TIME_VS_LEAN, TIME_VS_SAME_FACTS]) {
            4
        } else {
            1
        };
        for _ in 0..times {
            self.more(sides, accounts, &id, first).await?;
        }
        assert_state(done.state().balance, first + 9)
    }

    /// Executes commands in the publish mode of the tables.
    ///
    /// The first command of each stream is counted separately. So are the writes to the events
    /// table with which a publisher clears the commit's marker.
    pub(super) async fn mode(&mut self, samples: &mut Samples) -> Result<(), BenchError> {
        let sides = self.metered.clone();
        let (accounts, store) = (sides.accounts(States::Cached), sides.stores.event_store());
        for id in self.ids(self.size.streams) {
            let id = AccountId::from(id);
            let mut head = StreamHead::empty(stream_of(&id)?);
            for n in 1..=COMMANDS + 1 {
                let slot = CommitKey::new(head.stream().clone(), head.version().next());
                let measure = if n == 1 {
                    FIRST_WRITE_UNITS
                } else {
                    WRITE_UNITS
                };
                self.endpoint.take_cost();
                let done = accounts.execute(&id, Deposit::number(n)).await;
                head = done.map_err(BenchError::other)?.head().clone();
                if self.is_sabotaged(&[measure]) {
                    self.more(&sides, &accounts, &id, n).await?;
                }
                let units = self.endpoint.take_cost().write_units;
                add(samples, measure, units, units);
                self.assert_marked(&sides, &slot).await?;
                self.endpoint.take_cost();
                store
                    .clear_unpublished(&[slot])
                    .await
                    .map_err(BenchError::other)?;
                if self.is_sabotaged(&[CLEAR_WRITE_UNITS]) {
                    self.more(&sides, &accounts, &id, n).await?;
                }
                let units = self.endpoint.take_cost().write_units;
                add(samples, CLEAR_WRITE_UNITS, units, units);
            }
        }
        Ok(())
    }

    /// Checks that the last commit alone waits for the publisher, if the mode writes markers.
    async fn assert_marked(&self, sides: &Sides, slot: &CommitKey) -> Result<(), BenchError> {
        let store = sides.stores.event_store();
        if !store.capabilities().lists_unpublished {
            return Ok(());
        }
        let page = store.unpublished(Segment::ALL, None, NonZeroU32::MAX).await;
        let keys = page.map_err(BenchError::other)?.keys;
        if keys == std::slice::from_ref(slot) {
            return Ok(());
        }
        let problem = format!("{keys:?} have markers instead of {slot:?}");
        Err(BenchError::other(problem))
    }

    /// Executes commands with a command id.
    ///
    /// No store written by hand has those, so round-trip times are compared with one query.
    pub(super) async fn commands_with_id(
        &mut self,
        states: States,
        samples: &mut Samples,
    ) -> Result<(), BenchError> {
        let with_ids = |sides: &Sides| {
            let control = sides.stores.control_store();
            sides.accounts(states).with_idempotency(control, RETENTION)
        };
        let sides = self.metered.clone();
        let accounts = with_ids(&sides);
        let ids = self.ids(self.size.streams);
        begin(&sides, &accounts, &ids).await?;
        for id in ids {
            let id = AccountId::from(id);
            for n in 2..=COMMANDS + 1 {
                self.endpoint.take_cost();
                self.command_with_id(&sides, &accounts, &id, n).await?;
                let Cost {
                    trips,
                    write_units,
                    read_units,
                    ..
                } = self.endpoint.take_cost();
                add(samples, TRIPS, trips, trips);
                add(samples, WRITE_UNITS, write_units, write_units);
                add(samples, READ_UNITS, read_units, read_units);
            }
        }

        let sides = self.distant.clone();
        let accounts = with_ids(&sides);
        let id = self.ids(1).remove(0);
        begin(&sides, &accounts, std::slice::from_ref(&id)).await?;
        let account = AccountId::from(&*id);
        for n in 2..=self.size.rounds as u64 + 2 {
            let started = Instant::now();
            self.command_with_id(&sides, &accounts, &account, n).await?;
            let ours = started.elapsed();
            let started = Instant::now();
            sides.lean.load(&id).await?;
            // The first round warms up and is not counted.
            if n > 2 {
                let theirs = started.elapsed();
                add(samples, ROUND_TRIPS, in_ms(ours), in_ms(theirs));
            }
        }
        Ok(())
    }

    async fn command_with_id(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &AccountId,
        n: u64,
    ) -> Result<(), BenchError> {
        let metadata = Metadata::new().with_command_id(format!("command-{n:08}"));
        let done = accounts.execute_with(id, Deposit::number(n), metadata);
        let done = done.await.map_err(BenchError::other)?;
        self.more(sides, accounts, id, n).await?;
        assert_state(done.state().balance, n)
    }
}

fn in_ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn stream_of(id: &AccountId) -> Result<foldstream::StreamId, BenchError> {
    Repository::<Account>::stream_id(id).map_err(BenchError::other)
}
