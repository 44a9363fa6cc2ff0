//! The error that all checks share.
use std::{io, path::Path, string::FromUtf8Error};

/// The error of a check.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// A checked rule is broken. The text says what to do.
    #[error("{0}")]
    Failed(String),
    /// A file cannot be read or written, or a program cannot be started.
    #[error("{what}: {source}")]
    Io {
        /// The file or the program.
        what: String,
        #[source]
        source: io::Error,
    },
    /// A program exited with an error.
    #[error("`{command}` failed:\n{stderr}")]
    Program {
        /// The command line of the program.
        command: String,
        /// The output of the program on stderr.
        stderr: String,
    },
    /// The output of a program is not Unicode.
    #[error("the output of a program is not Unicode")]
    NotUnicode(#[from] FromUtf8Error),
    /// The output of cargo is not the JSON that was expected.
    #[error("the output of cargo cannot be read as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON of rustdoc cannot be read.
    #[error(
        "the rustdoc JSON of {package} cannot be read: {source}. The dependency public-api of this check reads the format \
         of Rust 1.95; with a later Rust, update it in .ci/checks/Cargo.toml"
    )]
    PublicApi {
        /// The name of the package.
        package: String,
        #[source]
        source: public_api::Error,
    },
}

impl CheckError {
    /// Returns a function that makes an error about a file.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = path.display().to_string();
        move |source| Self::Io { what, source }
    }
}
