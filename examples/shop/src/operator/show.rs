//! Lists of processors, parked streams, dead letters, redrives and the audit.
use super::{AuditArgs, CommandError, Console, Outcome, Target, find::PAGE};
use foldstream::{
    Timestamp,
    operate::{
        DeadLetter, InstanceState, JobState, JobStatus, LetterBody, LetterHead, ListedLetter,
        ParkedState, ParkedStream, ProcessorStatus,
    },
};
use std::io;

/// The most bytes of a payload that are shown.
const SHOWN_BYTES: usize = 2_000;

impl<W: io::Write + Send> Console<'_, W> {
    pub(super) async fn processors(&mut self) -> Result<Outcome, CommandError> {
        let processors = self.operator.processors().await?;
        if processors.is_empty() {
            self.line("no processor has started on this control store yet")?;
        }
        for processor in processors {
            self.processor(&processor)?;
        }
        Ok(Outcome::Done)
    }

    fn processor(&mut self, status: &ProcessorStatus) -> io::Result<()> {
        let lag = status.lag.map_or("unknown".into(), |lag| lag.to_string());
        self.line(format!(
            "{:16} generation {} {:8} lag {lag}, {}",
            status.name,
            status.generation,
            status.state,
            count(status.instances.len() as u64, "instance"),
        ))?;
        if let Some(next) = &status.next {
            let lag = next.lag.map_or("unknown".into(), |lag| lag.to_string());
            let generation = next.generation;
            self.line(format!("  generation {generation} catches up: lag {lag}"))?;
        }
        if let Some(pause) = status.pause.as_ref().filter(|pause| pause.is_paused) {
            self.line(format!("  paused by {}: {}", pause.by, pause.why))?;
        }
        for instance in &status.instances {
            let lag = instance
                .lag
                .map_or(String::new(), |lag| format!(", lag {lag}"));
            self.line(format!(
                "  {} {} since {}, {}{lag}",
                instance.label,
                instance_state(instance.state),
                instance.since,
                count(u64::from(instance.partitions), "partition"),
            ))?;
            if let Some(error) = &instance.error {
                self.line(format!("    {error}"))?;
            }
        }
        Ok(())
    }

    pub(super) async fn parked(&mut self, processor: &str) -> Result<Outcome, CommandError> {
        let (mut after, mut found) = (None, 0);
        loop {
            let operator = self.operator;
            let page = operator.parked(processor, after.as_ref(), PAGE).await?;
            for parked in page.items {
                found += 1;
                self.parked_stream(&parked)?;
                if let Some(letter) = operator.letter(&parked.address()).await? {
                    self.line(format!("  {}", failure(&letter.head)))?;
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.line(format!("{} of {processor} parked", count(found, "stream")))?;
        Ok(Outcome::Done)
    }

    fn parked_stream(&mut self, parked: &ParkedStream) -> io::Result<()> {
        let state = match &parked.state {
            ParkedState::Waiting => "waits for an operator".into(),
            ParkedState::Requested { by, .. } => format!("redrive asked for by {by}"),
            ParkedState::Redriving { owner, by, .. } => format!("redriven by {owner} for {by}"),
            _ => "in a state that this build does not know".into(),
        };
        self.line(format!(
            "{} at version {}, known up to {}, since {}: {state}",
            parked.stream, parked.from, parked.high, parked.since
        ))
    }

    pub(super) async fn letters(
        &mut self,
        processor: Option<&str>,
    ) -> Result<Outcome, CommandError> {
        let (mut after, mut found) = (None, 0);
        loop {
            let operator = self.operator;
            let page = match processor {
                Some(name) => operator.letters(name, after.as_ref(), PAGE).await?,
                None => operator.all_letters(after.as_ref(), PAGE).await?,
            };
            for letter in page.items {
                found += 1;
                self.letter(&letter)?;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.line(count(found, "dead letter"))?;
        Ok(Outcome::Done)
    }

    fn letter(&mut self, letter: &ListedLetter) -> io::Result<()> {
        let target = Target::text(&letter.address);
        self.line(format!("{:16} {target}", letter.address.processor))?;
        self.line(format!("  {}", failure(&letter.head)))
    }

    pub(super) async fn groups(
        &mut self,
        processor: Option<&str>,
    ) -> Result<Outcome, CommandError> {
        let found = self.operator.letter_groups(processor).await?;
        for group in &found.groups {
            let letters = count(group.letters, "dead letter");
            self.line(format!("group {}: {letters}", group.fingerprint))?;
            self.line(format!("  first {}, last {}", group.first, group.last))?;
            let example = &group.example;
            let target = Target::text(&example.address);
            self.line(format!("  as {} {target}", example.address.processor))?;
            self.line(format!("  {}", failure(&example.head)))?;
        }
        if found.others > 0 {
            self.line(format!("and {} of other groups", found.others))?;
        }
        self.line(count(found.groups.len() as u64, "group"))?;
        Ok(Outcome::Done)
    }

    pub(super) async fn show(
        &mut self,
        processor: &str,
        target: &Target,
    ) -> Result<Outcome, CommandError> {
        let address = target.find(self.operator, processor).await?;
        let Some(letter) = self.operator.letter(&address).await? else {
            self.line(format!(
                "{target} waits after an event that failed, and has no letter"
            ))?;
            return Ok(Outcome::NotAll);
        };
        self.whole_letter(target, &letter)?;
        Ok(Outcome::Done)
    }

    fn whole_letter(&mut self, target: &Target, letter: &DeadLetter) -> io::Result<()> {
        let head = &letter.head;
        let kind = head
            .event_type
            .as_deref()
            .unwrap_or("a record that cannot be read");
        self.line(format!("event        {target}, {kind}"))?;
        self.line(format!("failure      {}: {}", head.class, head.error))?;
        self.line(format!("error type   {}", head.error_type))?;
        self.line(format!("group        {}", head.fingerprint))?;
        let attempts = count(u64::from(head.attempts), "attempt");
        self.line(format!(
            "attempts     {attempts}, first {}, last {}",
            head.first, head.last
        ))?;
        let payload = match &letter.body {
            LetterBody::Event(event) => event.payload.as_ref(),
            LetterBody::Record(record) => record.message.value.as_deref().unwrap_or_default(),
            _ => return Ok(()),
        };
        let shown = payload.get(..SHOWN_BYTES).unwrap_or(payload);
        self.line(format!("payload      {}", String::from_utf8_lossy(shown)))?;
        if shown.len() < payload.len() {
            self.line(format!(
                "             and {} more bytes",
                payload.len() - shown.len()
            ))?;
        }
        Ok(())
    }

    pub(super) async fn jobs(&mut self, processor: &str) -> Result<Outcome, CommandError> {
        let (mut after, mut found) = (None, 0);
        loop {
            let page = self.operator.jobs(processor, after).await?;
            for job in &page.jobs {
                found += 1;
                self.job(job)?;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.line(count(found, "redrive"))?;
        Ok(Outcome::Done)
    }

    fn job(&mut self, job: &JobStatus) -> io::Result<()> {
        let state = job_state(job.state);
        self.line(format!(
            "{} {state}, of {}, by {}: {}",
            job.id, job.selection, job.by, job.why
        ))?;
        self.line(format!("  {}", progress(job)))
    }

    pub(super) async fn audit(&mut self, args: &AuditArgs) -> Result<Outcome, CommandError> {
        let day = args.day.unwrap_or_else(Timestamp::now);
        let (mut after, mut found) = (None, 0);
        loop {
            let page = self.operator.audit(day, after).await?;
            for entry in page.entries {
                found += 1;
                let affected = entry.affected.map_or("unknown".into(), |n| n.to_string());
                self.line(format!(
                    "{} {} {} {}, affected {affected}: {}",
                    entry.at, entry.who, entry.action, entry.target, entry.why
                ))?;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.line(count(found, "operation"))?;
        Ok(Outcome::Done)
    }
}

/// Describes a failure in one line.
fn failure(head: &LetterHead) -> String {
    let attempts = count(u64::from(head.attempts), "attempt");
    let kind = head.event_type.as_deref().unwrap_or("unreadable");
    format!("{kind}, {} after {attempts}: {}", head.class, head.error)
}

/// Describes how far a redrive is.
pub(super) fn progress(job: &JobStatus) -> String {
    let counts = job.counts;
    format!(
        "{} of {} done with {}; {} failed again, {} gone before",
        counts.done,
        count(job.items, "item"),
        count(counts.handled, "event"),
        counts.failed,
        counts.gone
    )
}

pub(super) const fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Selecting => "is being selected",
        JobState::Running => "is running",
        JobState::Aborting => "is being aborted",
        JobState::Aborted => "was aborted",
        JobState::Done => "is done",
        _ => "is in a state that this build does not know",
    }
}

const fn instance_state(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Running => "running",
        InstanceState::Paused => "paused",
        InstanceState::Held => "held",
        InstanceState::Unreachable => "unreachable",
        InstanceState::Halted => "halted",
        InstanceState::Waiting => "waiting",
        InstanceState::Superseded => "superseded",
        InstanceState::Stopping => "stopping",
        _ => "in a state that this build does not know,",
    }
}

/// Writes a number with its noun, as in `1 stream` or `2 streams`.
pub(super) fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}
