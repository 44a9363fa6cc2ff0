use std::error::Error;
use std::fmt::Write as _;
use std::io;

/// The error returned when there is no server for a live test. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// A variable holds something that cannot be used.
    #[error("{variable} {reason}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What is wrong with its value, as a predicate ("is not a URL").
        reason: String,
    },

    /// The server that a variable names does not accept connections.
    #[error(
        "cannot connect to {server} at {address}, which {variable} names: start it, or unset {variable} to \
         have a container started"
    )]
    Unreachable {
        /// Which server.
        server: &'static str,
        /// Host and port that were tried.
        address: String,
        /// The variable.
        variable: &'static str,
        /// The failed connection.
        source: io::Error,
    },

    /// The Docker engine does not answer.
    #[error(
        "cannot start {server}: Docker does not answer. Start the Docker engine, or set {variable} to a server \
         that is running (see CONTRIBUTING.md)"
    )]
    Docker {
        /// Which server was to be started.
        server: &'static str,
        /// The variable that names a running one instead.
        variable: &'static str,
        /// What Docker's client said.
        source: Box<dyn Error + Send + Sync>,
    },

    /// The image is not on this machine and cannot be pulled.
    #[error(
        "cannot start {server}: there is no image {image} and it cannot be pulled. Build one with \
         .ci/servers/prepare and name it in {variable} (see CONTRIBUTING.md)"
    )]
    Image {
        /// Which server was to be started.
        server: &'static str,
        /// The image.
        image: String,
        /// The variable that names another image.
        variable: &'static str,
        /// What Docker's client said.
        source: Box<dyn Error + Send + Sync>,
    },

    /// A container was made, but its server did not become ready.
    #[error("{server} did not start from {image}; the end of its log:\n{log}")]
    NotReady {
        /// Which server.
        server: &'static str,
        /// The image.
        image: String,
        /// The last lines that the container printed.
        log: String,
        /// What was waited for, or what failed.
        source: Box<dyn Error + Send + Sync>,
    },

    /// The runtime that drives containers could not be started, or lost a task.
    #[error("cannot run the container runtime")]
    Runtime(#[source] io::Error),
}

impl ContainerError {
    pub(super) fn variable(variable: &'static str, reason: impl Into<String>) -> Self {
        Self::Variable {
            variable,
            reason: reason.into(),
        }
    }

    /// The message with all its causes, one a line. Docker's client repeats itself, so what was said is left out.
    pub(super) fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                // Writing to a string cannot fail.
                let _ = write!(text, "\n  because {said}");
            }
            cause = error.source();
        }
        text
    }
}
