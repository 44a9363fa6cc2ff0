//! The checks of CI on the packages of foldstream.
//!
//! They compare contents and public API with checked-in listings, follow the links of every
//! Markdown file, find files that nothing compiles or mentions, count habits of the
//! documentation, and look for misspelled words.
//!
//! `cargo run -p foldstream-checks` prints the checks. Run it in the root of the workspace.
mod api;
mod error;
mod files;
mod links;
mod listing;
mod packages;
mod spelling;
mod words;
mod workspace;

use error::CheckError;
use std::{env, process::ExitCode};
use workspace::Workspace;

const USAGE: &str = "\
usage: cargo run -p foldstream-checks -- CHECK

  packages [--update]   the files of every published package, against .ci/packages/*.txt
  api [--update]        the public API of every published package, against .ci/api/*.txt
  links                 the links of all tracked Markdown files; run `cargo doc` before
  files FEATURES        tracked files that nothing compiles or mentions
  words                 how documentation and comments are written
  spelling              misspelled words in all tracked text files
  features              prints the features that docs.rs documents, as cargo's --features takes them
  published             prints the names of the published packages, in an order in which they can be published

`--update` writes the listings again. Look at the difference before you commit it.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), CheckError> {
    match arguments {
        ["packages"] => packages::check(&Workspace::load()?, listing::Mode::Compare),
        ["packages", "--update"] => packages::check(&Workspace::load()?, listing::Mode::Update),
        ["api"] => api::check(&Workspace::load()?, listing::Mode::Compare),
        ["api", "--update"] => api::check(&Workspace::load()?, listing::Mode::Update),
        ["links"] => links::check(&Workspace::load()?),
        ["files", features] => files::check(&Workspace::load()?, features),
        ["words"] => words::check(&Workspace::load()?),
        ["spelling"] => spelling::check(&Workspace::load()?),
        ["features"] => {
            println!("{}", Workspace::load()?.docs_features()?.join(","));
            Ok(())
        }
        ["published"] => {
            for package in Workspace::load()?.published() {
                println!("{}", package.name);
            }
            Ok(())
        }
        _ => Err(CheckError::Failed(USAGE.into())),
    }
}
