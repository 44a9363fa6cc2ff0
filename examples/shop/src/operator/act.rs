//! Operations: redrive, discard, skip, pause and resume.
use super::{
    By, CommandError, Console, EventArgs, Outcome, RedriveArgs, RedriveTarget, Target, TargetError,
    args::How,
    show::{count, job_state, progress},
};
use foldstream::operate::{
    DiscardState, Discarded, EventRef, JobId, JobRunner, JobState, Redrive, Selection,
};
use std::io;
use tokio_util::sync::CancellationToken;

impl<W: io::Write + Send> Console<'_, W> {
    pub(super) async fn redrive(
        &mut self,
        args: &RedriveArgs,
        stop: &CancellationToken,
    ) -> Result<Outcome, CommandError> {
        let processor = &*args.processor;
        let (selection, how) = self.selection(processor, &args.target).await?;
        let mut redrive = Redrive::new(processor, selection);
        if let Some(rate) = how.rate {
            redrive = redrive.with_rate(rate);
        }
        if how.dry_run {
            let size = self.operator.dry_run(&redrive).await?;
            self.line(format!(
                "a redrive of {processor} {} would handle {} in {} and {}",
                redrive.selection,
                count(size.events, "event"),
                count(size.streams, "parked stream"),
                count(size.letters, "dead letter"),
            ))?;
            return Ok(found(size.streams + size.letters));
        }
        let by = By {
            why: how.why.clone().unwrap_or_default(),
            who: how.who.clone(),
        };
        let job = self.operator.redrive(&redrive, &by.reason()?).await?;
        if job.items == 0 {
            self.line(format!(
                "{processor} has nothing to redrive at {}",
                redrive.selection
            ))?;
            return Ok(Outcome::NotAll);
        }
        let (items, events) = (count(job.items, "item"), count(job.events, "event"));
        self.line(format!(
            "redrive {} of {processor}: {items} with {events}",
            job.id
        ))?;
        self.run_job(processor, job.id, stop).await
    }

    async fn selection<'t>(
        &self,
        processor: &str,
        target: &'t RedriveTarget,
    ) -> Result<(Selection, &'t How), CommandError> {
        Ok(match target {
            RedriveTarget::Event { event, how } => {
                let key = event.find(self.operator, processor).await?.key;
                (Selection::Letter(key), how)
            }
            RedriveTarget::Stream { stream, how } => (Selection::Stream(stream.clone()), how),
            RedriveTarget::Group { fingerprint, how } => (Selection::Group(*fingerprint), how),
            RedriveTarget::All { how } => (Selection::All, how),
        })
    }

    /// Executes a redrive, and waits for the processor to handle the events.
    pub(super) async fn run_job(
        &mut self,
        processor: &str,
        job: JobId,
        stop: &CancellationToken,
    ) -> Result<Outcome, CommandError> {
        let runner = JobRunner::new(self.operator.clone(), "the shop's operator");
        let runner = runner.with_poll(self.poll);
        let status = runner.run(processor, job, stop.cancelled()).await?;
        self.line(format!(
            "{}: {}",
            job_state(status.state),
            progress(&status)
        ))?;
        if !status.is_over() {
            self.line(format!("continue with: shop jobs run {processor} {job}"))?;
            return Ok(Outcome::Interrupted);
        }
        let is_whole = status.state == JobState::Done && status.counts.failed == 0;
        Ok(if is_whole {
            Outcome::Done
        } else {
            Outcome::NotAll
        })
    }

    pub(super) async fn abort(
        &mut self,
        processor: &str,
        job: JobId,
        by: &By,
    ) -> Result<Outcome, CommandError> {
        let aborted = self.operator.abort(processor, job, &by.reason()?).await?;
        let taken = count(aborted.affected, "request");
        self.line(format!(
            "redrive {job} {}; {taken} taken back",
            job_state(aborted.state)
        ))?;
        Ok(Outcome::Done)
    }

    pub(super) async fn discard(&mut self, args: &EventArgs) -> Result<Outcome, CommandError> {
        let reason = args.by.reason()?;
        let address = args.event.find(self.operator, &args.processor).await?;
        let answer = self.operator.discard(&address, &reason).await?;
        self.discarded("discard", args, answer)
    }

    pub(super) async fn skip(&mut self, args: &EventArgs) -> Result<Outcome, CommandError> {
        let reason = args.by.reason()?;
        let Target::Event(stream, version) = &args.event else {
            return Err(TargetError::NoEvent(args.event.clone()).into());
        };
        let event = EventRef::new(stream.clone(), *version);
        let answer = self.operator.skip(&args.processor, &event, &reason).await?;
        self.discarded("skip", args, answer)
    }

    fn discarded(
        &mut self,
        action: &str,
        args: &EventArgs,
        answer: Discarded,
    ) -> Result<Outcome, CommandError> {
        let state = match answer.state {
            Some(DiscardState::Asked) => "asked for; the processor answers within seconds",
            Some(DiscardState::Passed) => "done; the event is passed over",
            Some(DiscardState::Handled) => "too late; the event was handled before",
            _ => "nothing is there",
        };
        self.line(format!(
            "{action} of {} {}: {state}",
            args.processor, args.event
        ))?;
        Ok(found(answer.affected))
    }

    pub(super) async fn pause(
        &mut self,
        processor: &str,
        by: &By,
    ) -> Result<Outcome, CommandError> {
        let change = self.operator.pause(processor, &by.reason()?).await?;
        let was = if change.affected > 0 {
            "is"
        } else {
            "was already"
        };
        self.line(format!("{processor} {was} paused"))?;
        Ok(found(change.affected))
    }

    pub(super) async fn resume(
        &mut self,
        processor: &str,
        by: &By,
    ) -> Result<Outcome, CommandError> {
        let change = self.operator.resume(processor, &by.reason()?).await?;
        let was = if change.affected > 0 {
            "is resumed"
        } else {
            "was not paused"
        };
        self.line(format!("{processor} {was}"))?;
        Ok(found(change.affected))
    }
}

/// 0 is an answer, which the exit code tells, too.
const fn found(affected: u64) -> Outcome {
    if affected > 0 {
        Outcome::Done
    } else {
        Outcome::NotAll
    }
}
