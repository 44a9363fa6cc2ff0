//! The operator's commands: what runs, what failed, and what to do about it.
//!
//! Everything here goes through [`foldstream::operate`], so any other process could do the same.
//! The commands read and write rows of the control store. The processors, in processes of their
//! own, find a request within a few seconds.
mod act;
mod args;
mod breakers;
mod find;
mod publishing;
mod show;

pub use args::{
    AuditArgs, By, EventArgs, JobCommand, LetterCommand, OperatorCommand, PublisherCommand,
    RedriveArgs, RedriveTarget,
};
pub use find::{Target, TargetError};

use foldstream::{
    BoxError,
    operate::{OperateError, Operator},
    publisher::Publisher,
};
use std::{io, time::Duration};
use tokio_util::sync::CancellationToken;

/// The result of an operator's command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command has shown or done what it was asked for.
    Done,
    /// There was nothing at the target, or a part of it has failed again.
    NotAll,
    /// The command was interrupted. What it has begun goes on, or can be continued.
    Interrupted,
}

/// The error of an operator's command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The operation was refused or failed.
    #[error(transparent)]
    Operate(#[from] OperateError),
    /// The target of the command cannot be found.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The output cannot be written.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
    /// Nobody is named as the operator.
    #[error("name yourself for the audit: --who NAME")]
    Nobody,
}

/// Carries out operators' commands, and writes what happened as text.
#[derive(Debug)]
pub struct Console<'a, W> {
    operator: &'a Operator,
    publisher: &'a Publisher,
    out: W,
    poll: Duration,
}

impl<'a, W: io::Write + Send> Console<'a, W> {
    /// Creates a console that writes to `out`. The publisher publishes what a command asks for.
    pub const fn new(operator: &'a Operator, publisher: &'a Publisher, out: W) -> Self {
        Self {
            operator,
            publisher,
            out,
            poll: Duration::from_secs(1),
        }
    }

    /// Carries out one command. `stop` ends the waiting for a redrive, which any other process can
    /// continue.
    ///
    /// # Errors
    /// [`CommandError`] if the command is refused or fails; it says what to do.
    pub async fn run(
        &mut self,
        command: &OperatorCommand,
        stop: &CancellationToken,
    ) -> Result<Outcome, CommandError> {
        match command {
            OperatorCommand::Processors => self.processors().await,
            OperatorCommand::Parked { processor } => self.parked(processor).await,
            OperatorCommand::Letters(LetterCommand::List { processor }) => {
                self.letters(processor.as_deref()).await
            }
            OperatorCommand::Letters(LetterCommand::Groups { processor }) => {
                self.groups(processor.as_deref()).await
            }
            OperatorCommand::Letters(LetterCommand::Show { processor, event }) => {
                self.show(processor, event).await
            }
            OperatorCommand::Redrive(args) => self.redrive(args, stop).await,
            OperatorCommand::Jobs(JobCommand::List { processor }) => self.jobs(processor).await,
            OperatorCommand::Jobs(JobCommand::Run { processor, job }) => {
                self.run_job(processor, *job, stop).await
            }
            OperatorCommand::Jobs(JobCommand::Abort { processor, job, by }) => {
                self.abort(processor, *job, by).await
            }
            OperatorCommand::Discard(args) => self.discard(args).await,
            OperatorCommand::Skip(args) => self.skip(args).await,
            OperatorCommand::Pause { processor, by } => self.pause(processor, by).await,
            OperatorCommand::Resume { processor, by } => self.resume(processor, by).await,
            OperatorCommand::Breakers => self.breakers().await,
            OperatorCommand::Publisher(command) => self.publishing(command).await,
            OperatorCommand::Audit(args) => self.audit(args).await,
        }
    }

    /// Writes one line.
    fn line(&mut self, line: impl AsRef<str>) -> io::Result<()> {
        writeln!(self.out, "{}", line.as_ref().trim_end())
    }
}

/// Reads a command line as `shop` does, without the name of the program. For tests and stories.
///
/// # Errors
/// The message of the parser.
pub fn parse(line: &[&str]) -> Result<OperatorCommand, BoxError> {
    use clap::Parser;
    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: OperatorCommand,
    }
    let words = std::iter::once("shop").chain(line.iter().copied());
    Ok(Line::try_parse_from(words)?.command)
}
