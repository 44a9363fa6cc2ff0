//! Publishers: what runs, streams that were set aside, pinned topics, and what is done about them.
use super::{By, CommandError, Console, Outcome, PublisherCommand, find::PAGE, show::count};
use foldstream::{
    StreamId, Timestamp, Version,
    operate::ReconcileStatus,
    publisher::{DirtyReason, DirtyStream, ReconcileBudget, SweepConfig},
};
use std::io;

impl<W: io::Write + Send> Console<'_, W> {
    pub(super) async fn publishing(
        &mut self,
        command: &PublisherCommand,
    ) -> Result<Outcome, CommandError> {
        match command {
            PublisherCommand::Status => self.publisher_status().await,
            PublisherCommand::Streams => self.published_streams().await,
            PublisherCommand::Dirty => self.dirty_streams().await,
            PublisherCommand::Topics => self.topics().await,
            PublisherCommand::Sweep { by } => self.sweep(by).await,
            PublisherCommand::Reconcile { by } => self.reconcile(by).await,
            PublisherCommand::Skip {
                stream,
                version,
                by,
            } => self.skip_publishing(stream, *version, by).await,
            PublisherCommand::AcceptPartitions {
                topic,
                partitions,
                by,
            } => self.accept_partitions(topic, *partitions, by).await,
        }
    }

    async fn publisher_status(&mut self) -> Result<Outcome, CommandError> {
        let overview = self.operator.publisher(None).await?;
        for instance in &overview.instances {
            let status = &instance.status;
            let (lag, dirty) = (
                count(status.lag, "event"),
                count(status.dirty as u64, "stream"),
            );
            let label = &instance.label;
            let silent = match instance.is_silent(Timestamp::now()) {
                true => format!(", silent since {}", instance.updated),
                false => String::new(),
            };
            self.line(format!(
                "{label:16} {lag} waiting, {dirty} set aside{silent}"
            ))?;
            for (topic, numbers) in &status.topics {
                self.line(format!(
                    "  {topic}: {} published, {} suppressed",
                    count(numbers.published, "record"),
                    count(numbers.duplicates_suppressed, "duplicate"),
                ))?;
            }
        }
        self.line(count(overview.instances.len() as u64, "publisher"))?;
        if let Some(run) = overview.reconciling {
            self.line(format!("a reconciliation is under way: {}", numbers(&run)))?;
        }
        if let Some(run) = overview.reconciled {
            self.line(format!("reconciled at {}: {}", run.updated, numbers(&run)))?;
        }
        Ok(Outcome::Done)
    }

    async fn published_streams(&mut self) -> Result<Outcome, CommandError> {
        let (mut after, mut found) = (None, 0);
        loop {
            let list = self.operator.published_streams(None, after.as_ref(), PAGE);
            let list = list.await?;
            for at in list.items {
                found += 1;
                self.line(format!("{} at version {}", at.stream, at.version))?;
            }
            after = list.next;
            if after.is_none() {
                break;
            }
        }
        self.line(format!("{} published", count(found, "stream")))?;
        Ok(Outcome::Done)
    }

    async fn dirty_streams(&mut self) -> Result<Outcome, CommandError> {
        let (mut after, mut found) = (None, 0);
        loop {
            let list = self.operator.dirty_streams(None, after.as_ref(), PAGE);
            let list = list.await?;
            for dirty in list.items {
                found += 1;
                self.dirty_stream(&dirty)?;
            }
            after = list.next;
            if after.is_none() {
                break;
            }
        }
        self.line(format!("{} set aside", count(found, "stream")))?;
        Ok(Outcome::Done)
    }

    fn dirty_stream(&mut self, dirty: &DirtyStream) -> io::Result<()> {
        let why = match dirty.why {
            DirtyReason::Stuck => "stuck",
            DirtyReason::Old => "old notices",
            DirtyReason::Backlog => "backlog",
            _ => "set aside",
        };
        let attempts = count(u64::from(dirty.attempts), "attempt");
        self.line(format!(
            "{} {why} since {}, known up to {}, {attempts}",
            dirty.stream, dirty.since, dirty.known
        ))?;
        match &dirty.error {
            Some(error) => self.line(format!("  {error}")),
            None => Ok(()),
        }
    }

    async fn topics(&mut self) -> Result<Outcome, CommandError> {
        for topic in self.operator.topics().await? {
            let found = topic
                .found
                .map_or("an unknown number".into(), |n| n.to_string());
            self.line(format!(
                "{} pinned to {}, has {found}",
                topic.topic,
                count(u64::from(topic.pinned), "partition")
            ))?;
        }
        Ok(Outcome::Done)
    }

    async fn sweep(&mut self, by: &By) -> Result<Outcome, CommandError> {
        let config = SweepConfig::default();
        let report = self
            .operator
            .sweep(self.publisher, &config, &by.reason()?)
            .await?;
        if report.is_elsewhere {
            self.line("another process is sweeping")?;
            return Ok(Outcome::NotAll);
        }
        self.line(format!(
            "{} published, {} still set aside",
            count(report.published, "stream"),
            report.still_dirty
        ))?;
        Ok(all_if(report.still_dirty == 0))
    }

    async fn reconcile(&mut self, by: &By) -> Result<Outcome, CommandError> {
        let (budget, reason) = (ReconcileBudget::default(), by.reason()?);
        let report = self
            .operator
            .reconcile(self.publisher, &budget, &reason)
            .await?;
        self.line(format!(
            "{} read, {} published, {} failed",
            count(report.heads, "commit"),
            count(report.messages, "record"),
            count(report.failed.len() as u64, "stream")
        ))?;
        Ok(all_if(report.failed.is_empty()))
    }

    async fn skip_publishing(
        &mut self,
        stream: &StreamId,
        version: u64,
        by: &By,
    ) -> Result<Outcome, CommandError> {
        let (version, reason) = (Version::new(version), by.reason()?);
        let skip = self
            .operator
            .skip_publishing(self.publisher, stream, version, &reason);
        let skipped = skip.await?;
        self.line(format!(
            "event {version} of {stream} is kept out of the topic; {} published after it",
            count(skipped.report.messages, "record")
        ))?;
        for failure in &skipped.report.failed {
            self.line(format!("  {}", foldstream::chain(&failure.error)))?;
        }
        Ok(all_if(skipped.report.failed.is_empty()))
    }

    async fn accept_partitions(
        &mut self,
        topic: &str,
        partitions: u32,
        by: &By,
    ) -> Result<Outcome, CommandError> {
        let reason = by.reason()?;
        let accept = self.operator.accept_partitions(topic, partitions, &reason);
        let affected = accept.await?;
        let partitions = count(u64::from(partitions), "partition");
        self.line(match affected {
            0 => format!("{topic} was pinned to {partitions} before"),
            _ => format!("{topic} is pinned to {partitions}"),
        })?;
        Ok(all_if(affected > 0))
    }
}

/// Describes what a reconciliation has found.
fn numbers(run: &ReconcileStatus) -> String {
    format!(
        "{} read, {} behind in {}",
        count(run.heads, "commit"),
        count(run.events, "event"),
        count(run.behind, "stream")
    )
}

const fn all_if(is_all: bool) -> Outcome {
    if is_all {
        Outcome::Done
    } else {
        Outcome::NotAll
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::{Console, parse};
    use crate::{
        backend::Backend,
        cart::{CartCommand, CartItem},
        money::Money,
    };
    use foldstream::Timestamp;
    use tokio_util::sync::CancellationToken;

    /// Runs a command of the operator, and returns what it has printed.
    async fn command(backend: &Backend, line: &str) -> String {
        let by = ["--who", "ann", "--why", "ticket 17"];
        let acts = ["sweep", "reconcile", "skip", "accept-partitions"];
        let mut words: Vec<_> = line.split(' ').collect();
        if words.iter().any(|word| acts.contains(word)) {
            words.extend(by);
        }
        let command = parse(&words).unwrap();
        let (operator, publisher) = (backend.operator(), backend.publisher());
        let (mut text, stop) = (Vec::new(), CancellationToken::new());
        let done = Console::new(&operator, &publisher, &mut text)
            .run(&command, &stop)
            .await;
        match done {
            Ok(_) => String::from_utf8(text).unwrap(),
            Err(error) => foldstream::chain(&error).to_string(),
        }
    }

    #[tokio::test]
    async fn publishers_are_shown_and_repaired_by_commands() {
        let backend = Backend::embedded();
        let item = CartItem {
            stock_code: "tea".into(),
            description: String::new(),
            quantity: 1,
            unit_price: Money::from_cents(300),
            invoiced_at: Timestamp::from_micros(0),
            customer: None,
            country: "France".into(),
        };
        let add = CartCommand::AddItem { item, in_stock: 9 };
        backend.carts().execute(&"c1".into(), add).await.unwrap();
        let cases = [
            ("publisher dirty", "0 streams set aside"),
            (
                "publisher reconcile",
                "1 record published, 0 streams failed",
            ),
            (
                "publisher streams",
                "cart#c1 at version 1\n1 stream published",
            ),
            ("publisher status", "1 event behind in 1 stream"),
            ("publisher topics", "pinned to"),
            ("publisher sweep", "0 streams published, 0 still set aside"),
            (
                "publisher skip cart#c1 1",
                "event 1 of cart#c1 is published",
            ),
            ("publisher accept-partitions GlobalEvents 77", "and not 77"),
            ("audit", "ann reconcile publisher, affected 1: ticket 17"),
            ("audit", "ann sweep publisher, affected 0: ticket 17"),
        ];
        for (line, part) in cases {
            let text = command(&backend, line).await;
            assert!(text.contains(part), "{line}: {part:?} is not in {text}");
        }
    }
}
