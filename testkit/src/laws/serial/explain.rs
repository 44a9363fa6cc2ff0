//! The search for a serial order of all operations.
use super::record::{Operation, Outcome};
use foldstream::{
    CommitId, StreamHead, StreamId, Version,
    ports::{Append, Commit, EventStore, EventStoreError, ReadFrom},
};
use futures::TryStreamExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The answers of a store that have no serial explanation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unexplained {
    /// The stored commits cannot be read at the end.
    #[error("the streams cannot be read at the end")]
    Store(#[from] EventStoreError),
    /// An answer does not fit what is stored.
    #[error("operation {operation}: {what}")]
    Told {
        /// The number of the operation in the order of the calls, from 0.
        operation: usize,
        /// The contradiction between the answer and the stored commits.
        what: String,
    },
    /// A stored commit was requested by no operation.
    #[error("{0}")]
    Stored(String),
    /// Each of these operations must come before the next one, and the last before the first.
    #[error(
        "no order: each of these operations comes before the next, and the last before the first: {0:?}"
    )]
    Circle(Vec<usize>),
}

/// The histories at the end, and the operation that wrote each commit.
struct End {
    streams: BTreeMap<StreamId, Vec<Commit>>,
    /// The operation that requested a commit, by commit id and stream.
    writers: HashMap<(CommitId, StreamId), usize>,
}

/// Checks that the operations have a serial explanation that ends in what the store holds now.
///
/// No operation may still be running, and the streams must have been empty when the log began. The
/// explanation says:
/// - An acknowledged commit is stored in its slot as it was requested. A refused one is not stored.
/// - A conflict is explained by another writer's commit in the slot that was requested before the
///   conflict was answered.
/// - A read to the end saw a prefix of the stream: every commit acknowledged before the read began,
///   and none requested after it ended.
/// - The commits of one atomic append are stored together or not at all, and all at one moment.
/// - An order exists that agrees with all of this and with the times of calls and answers.
///
/// # Errors
/// [`Unexplained`] if there is no such explanation, or if the store cannot be read.
pub async fn check(store: &dyn EventStore, operations: &[Operation]) -> Result<(), Unexplained> {
    let end = read_end(store, operations).await?;
    let mut order = Order::new(operations);
    for (number, operation) in operations.iter().enumerate() {
        let fits = fits(&end, number, operation, &mut order);
        fits.map_err(|what| Unexplained::Told {
            operation: number,
            what,
        })?;
    }
    order.add_versions(&end);
    order.check()
}

async fn read_end(store: &dyn EventStore, operations: &[Operation]) -> Result<End, Unexplained> {
    let mut names = BTreeSet::new();
    let mut asked: HashMap<(CommitId, StreamId), Vec<(usize, &Append)>> = HashMap::new();
    for (number, operation) in operations.iter().enumerate() {
        names.extend(operation.unchanged.iter().map(|head| head.stream().clone()));
        if let Outcome::Read { stream, .. } = &operation.outcome {
            names.insert(stream.clone());
        }
        for append in &operation.commits {
            let stream = append.head.stream().clone();
            names.insert(stream.clone());
            let key = (append.commit_id, stream);
            asked.entry(key).or_default().push((number, append));
        }
    }
    let mut end = End {
        streams: BTreeMap::new(),
        writers: HashMap::new(),
    };
    for stream in names {
        let from = ReadFrom::After(StreamHead::empty(stream.clone()));
        let commits: Vec<Commit> = store.read(&stream, from, None).try_collect().await?;
        for commit in &commits {
            let key = (commit.id, stream.clone());
            let asked = asked.get(&key).map_or(&[][..], Vec::as_slice);
            let same = asked
                .iter()
                .filter(|(_, append)| append.to_commit() == *commit);
            let Some(writer) = writer_of(operations, same.map(|(number, _)| *number)) else {
                let place = commit.first_version;
                let what =
                    format!("version {place} of {stream} holds a commit that nobody asked for so");
                return Err(Unexplained::Stored(what));
            };
            if end.writers.insert(key, writer).is_some() {
                let what = format!("commit {} is in {stream} twice", commit.id);
                return Err(Unexplained::Stored(what));
            }
        }
        end.streams.insert(stream, commits);
    }
    Ok(end)
}

/// Returns the writer of a commit that several operations requested: the operation that was told
/// so, else the first whose answer is unknown, else the first.
fn writer_of(operations: &[Operation], asked: impl Iterator<Item = usize>) -> Option<usize> {
    asked.min_by_key(|number| match operations[*number].outcome {
        Outcome::Appended(_) => 0,
        Outcome::Unknown => 1,
        _ => 2,
    })
}

impl End {
    fn commits(&self, stream: &StreamId) -> &[Commit] {
        self.streams.get(stream).map_or(&[], Vec::as_slice)
    }
    /// Returns the index of the commit that starts right after a version.
    fn slot(&self, stream: &StreamId, version: Version) -> Option<usize> {
        let commits = self.commits(stream);
        commits
            .iter()
            .position(|c| c.first_version == version.next())
    }
    /// Returns the number of commits up to a version, if a commit ends there.
    fn commits_to(&self, stream: &StreamId, version: Version) -> Option<usize> {
        if version == Version::NONE {
            return Some(0);
        }
        let commits = self.commits(stream);
        let at = commits.iter().position(|c| c.last_version() == version);
        at.map(|at| at + 1)
    }
    fn is_stored(&self, append: &Append) -> bool {
        let slot = self.slot(append.head.stream(), append.head.version());
        slot.is_some_and(|at| self.commits(append.head.stream())[at] == append.to_commit())
    }
    fn writer(&self, stream: &StreamId, index: usize) -> Option<usize> {
        let commit = self.commits(stream).get(index)?;
        self.writers.get(&(commit.id, stream.clone())).copied()
    }
}

/// Checks that an operation's answer fits what is stored, and adds what the answer says about the
/// order to `order`.
fn fits(end: &End, number: usize, operation: &Operation, order: &mut Order) -> Result<(), String> {
    let stored = operation
        .commits
        .iter()
        .filter(|append| end.is_stored(append))
        .count();
    let all = operation.commits.len();
    if stored != 0 && stored != all {
        return Err(format!(
            "{stored} of {all} commits of one atomic append are stored"
        ));
    }
    match &operation.outcome {
        Outcome::Unknown => {}
        Outcome::NotApplied | Outcome::Conflict { .. }
            if stored == all && all > 0 && is_its_own(end, number, operation) =>
        {
            return Err("it was told that nothing was stored, and its commit is there".into());
        }
        Outcome::NotApplied => {}
        Outcome::Appended(heads) => {
            if stored != all {
                return Err("its commit was acknowledged and is not there".into());
            }
            let expected: Vec<_> = operation.commits.iter().map(Append::head_after).collect();
            if *heads != expected {
                return Err(format!("it was told {heads:?} where {expected:?} belongs"));
            }
            for head in &operation.unchanged {
                let seen = end.commits_to(head.stream(), head.version());
                let seen =
                    seen.ok_or_else(|| format!("{head:?}, which it checked, is no commit end"))?;
                order.saw_exactly(number, head.stream(), seen, end);
            }
        }
        Outcome::Repeated(commits) => {
            let expected: Vec<_> = operation.commits.iter().map(Append::to_commit).collect();
            if stored != all || *commits != expected {
                return Err("it was told that an earlier attempt had stored its commit, and it is not there".into());
            }
            for append in &operation.commits {
                let stream = append.head.stream();
                if let Some(slot) = end.slot(stream, append.head.version()) {
                    order.saw_at_least(number, stream, slot + 1, end);
                }
            }
        }
        Outcome::Conflict { stream, actual } => {
            conflict_fits(end, number, operation, stream, *actual, order)?;
        }
        Outcome::Read {
            stream,
            after,
            commits,
        } => {
            let start = end.commits_to(stream, *after);
            let start =
                start.ok_or_else(|| format!("it read after {after}, where no commit ends"))?;
            let there = end.commits(stream)[start..]
                .iter()
                .map(|c| (c.id, c.last_version()));
            let there: Vec<_> = there.take(commits.len()).collect();
            if there != *commits {
                return Err(format!(
                    "it read what is no prefix of {stream}: {commits:?}"
                ));
            }
            order.saw_exactly(number, stream, start + commits.len(), end);
        }
    }
    Ok(())
}

/// Returns true if this very call stored the commits, and not another attempt with the same
/// commits.
fn is_its_own(end: &End, number: usize, operation: &Operation) -> bool {
    let writers = operation
        .commits
        .iter()
        .map(|append| (append.commit_id, append.head.stream().clone()));
    writers
        .into_iter()
        .all(|key| end.writers.get(&key) == Some(&number))
}

/// Checks that a conflict names a stream that had moved: another writer's commit was after the
/// expected head.
fn conflict_fits(
    end: &End,
    number: usize,
    operation: &Operation,
    stream: &StreamId,
    actual: Option<Version>,
    order: &mut Order,
) -> Result<(), String> {
    let heads = operation.commits.iter().map(|append| &append.head);
    let mut heads = heads.chain(&operation.unchanged);
    let head = heads.find(|head| head.stream() == stream);
    let head = head.ok_or_else(|| format!("a conflict on {stream}, which it did not name"))?;
    let tail = end
        .commits(stream)
        .last()
        .map_or(Version::NONE, Commit::last_version);
    if let Some(actual) = actual {
        if actual > tail {
            return Err(format!(
                "it was told of version {actual} of {stream}, which ends at {tail}"
            ));
        }
        // At least this many commits were there.
        let known = end
            .commits(stream)
            .iter()
            .filter(|c| c.last_version() <= actual)
            .count();
        order.saw_at_least(number, stream, known, end);
    }
    match end.slot(stream, head.version()) {
        Some(slot) => {
            order.saw_at_least(number, stream, slot + 1, end);
            Ok(())
        }
        // A head at which no commit ends conflicts with any commit that is there.
        None if head.version() < tail => Ok(()),
        None => Err(format!(
            "a conflict on {stream} at {}, after which there is nothing",
            head.version()
        )),
    }
}

/// The operations that must come before other operations.
struct Order {
    /// The operations that come right after each operation.
    next: Vec<BTreeSet<usize>>,
}

impl Order {
    /// Creates the order of time: an operation answered before another one was called comes first.
    fn new(operations: &[Operation]) -> Self {
        let next = operations.iter().map(|first| {
            let later = operations.iter().enumerate();
            let later =
                later.filter(|(_, later)| first.answered.is_some_and(|at| at < later.called));
            later.map(|(number, _)| number).collect()
        });
        Self {
            next: next.collect(),
        }
    }

    fn add(&mut self, first: Option<usize>, then: Option<usize>) {
        if let (Some(first), Some(then)) = (first, then)
            && first != then
        {
            self.next[first].insert(then);
        }
    }

    /// Adds that at least `commits` commits were there.
    fn saw_at_least(&mut self, number: usize, stream: &StreamId, commits: usize, end: &End) {
        if let Some(last) = commits.checked_sub(1) {
            self.add(end.writer(stream, last), Some(number));
        }
    }

    /// Adds that exactly this many commits were there.
    fn saw_exactly(&mut self, number: usize, stream: &StreamId, commits: usize, end: &End) {
        self.saw_at_least(number, stream, commits, end);
        self.add(Some(number), end.writer(stream, commits));
    }

    /// Adds that the commits of a stream came one after the other.
    fn add_versions(&mut self, end: &End) {
        for (stream, commits) in &end.streams {
            for index in 1..commits.len() {
                self.add(end.writer(stream, index - 1), end.writer(stream, index));
            }
        }
    }

    /// Removes operations before which no operation must come, again and again. The rest contains a
    /// cycle.
    fn check(&self) -> Result<(), Unexplained> {
        let mut before = vec![0usize; self.next.len()];
        for later in self.next.iter().flatten() {
            before[*later] += 1;
        }
        let mut free: Vec<usize> = (0..before.len()).filter(|n| before[*n] == 0).collect();
        let mut left: BTreeSet<usize> = (0..before.len()).collect();
        while let Some(number) = free.pop() {
            left.remove(&number);
            for later in &self.next[number] {
                before[*later] -= 1;
                if before[*later] == 0 {
                    free.push(*later);
                }
            }
        }
        match left.first() {
            None => Ok(()),
            Some(first) => Err(Unexplained::Circle(self.circle(&left, *first))),
        }
    }

    /// Returns a shortest cycle among the operations that are left.
    fn circle(&self, left: &BTreeSet<usize>, any: usize) -> Vec<usize> {
        let circles = left.iter().filter_map(|start| self.way_back(left, *start));
        circles.min_by_key(Vec::len).unwrap_or_else(|| vec![any])
    }

    /// Returns the shortest path from an operation to itself.
    fn way_back(&self, left: &BTreeSet<usize>, start: usize) -> Option<Vec<usize>> {
        let mut from: HashMap<usize, usize> = HashMap::new();
        let mut level = vec![start];
        while !level.is_empty() {
            let mut further = Vec::new();
            for number in level {
                for later in self.next[number].iter().filter(|n| left.contains(n)) {
                    if *later == start {
                        let mut way = vec![number];
                        while let Some(before) = from.get(&way[way.len() - 1]) {
                            way.push(*before);
                        }
                        way.reverse();
                        return Some(way);
                    }
                    if !from.contains_key(later) {
                        from.insert(*later, number);
                        further.push(*later);
                    }
                }
            }
            level = further;
        }
        None
    }
}
