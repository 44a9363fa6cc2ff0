//! The schema check as a command.
//!
//! `cargo run -p shop --example types -- --check` compares the stored types with the code, and
//! `--write` records what is new.
use foldstream_testkit::schema::SchemaError;
use std::process::ExitCode;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let done: Result<(), SchemaError> = shop::schema::check().command(argument.as_deref());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
