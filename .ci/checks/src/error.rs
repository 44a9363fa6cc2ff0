//! Why a check fails.
use std::{io, path::Path, string::FromUtf8Error};

/// An error of a check.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// What was checked is not as it should be. The text says what to do.
    #[error("{0}")]
    Failed(String),
    /// A file cannot be read or written, or a program not started.
    #[error("{what}: {source}")]
    Io {
        /// The file or the program.
        what: String,
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed:\n{stderr}")]
    Program {
        /// The command line.
        command: String,
        /// What the program wrote to stderr.
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
        /// The package.
        package: String,
        #[source]
        source: public_api::Error,
    },
}

impl CheckError {
    /// Makes an error about a file.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = path.display().to_string();
        move |source| Self::Io { what, source }
    }
}
