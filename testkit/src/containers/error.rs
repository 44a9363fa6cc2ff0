use std::error::Error;
use std::fmt::Write as _;
use std::io;

/// The error returned if there is no server for a live test. Its message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The value of an environment variable cannot be used.
    #[error("{variable} {reason}")]
    Variable {
        /// The name of the variable.
        variable: &'static str,
        /// The problem of the value, as a predicate such as "is not a URL".
        reason: String,
    },

    /// The server that an environment variable names does not accept connections.
    #[error(
        "cannot connect to {server} at {address}, which {variable} names: start it, or unset {variable} to \
         have a container started"
    )]
    Unreachable {
        /// The kind of server.
        server: &'static str,
        /// The host and port of the server.
        address: String,
        /// The variable that names the server.
        variable: &'static str,
        /// The error of the connection.
        source: io::Error,
    },

    /// The Docker engine does not answer.
    #[error(
        "cannot start {server}: Docker does not answer. Start the Docker engine, or set {variable} to a server \
         that is running (see CONTRIBUTING.md)"
    )]
    Docker {
        /// The kind of server that could not be started.
        server: &'static str,
        /// The variable that can name a running server instead.
        variable: &'static str,
        /// The error of Docker's client.
        source: Box<dyn Error + Send + Sync>,
    },

    /// The image is not on this machine and cannot be pulled.
    #[error(
        "cannot start {server}: there is no image {image} and it cannot be pulled. Build one with \
         .ci/servers/prepare and name it in {variable} (see CONTRIBUTING.md)"
    )]
    Image {
        /// The kind of server that could not be started.
        server: &'static str,
        /// The name of the image.
        image: String,
        /// The variable that can name another image.
        variable: &'static str,
        /// The error of Docker's client.
        source: Box<dyn Error + Send + Sync>,
    },

    /// A container was created, but its server did not become ready.
    #[error("{server} did not start from {image}; the end of its log:\n{log}")]
    NotReady {
        /// The kind of server that did not become ready.
        server: &'static str,
        /// The name of the image.
        image: String,
        /// The last 60 lines of the container's log.
        log: String,
        /// The error of the start or of the last request to the server.
        source: Box<dyn Error + Send + Sync>,
    },

    /// The server was not started in a way that allows a restart under the same address.
    #[error("{server} cannot be restarted: start it with `start_restartable`")]
    NotRestartable {
        /// The kind of server.
        server: &'static str,
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

    /// Returns the message and all its causes, one per line.
    ///
    /// Docker's client repeats its messages, so a cause that the text already contains is left out.
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
