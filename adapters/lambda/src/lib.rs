#![doc = include_str!("../README.md")]

mod handler;
mod event;
mod batch;
mod attribute;
mod connections;
mod freeze;
mod config;
mod runtime;

pub use config::{LambdaConfig, LambdaConfigError, StartError};
pub use connections::Connections;
pub use event::InvalidEvent;
pub use handler::{BatchAnswer, Handler, HandlerError, Response, SweepAnswer};
pub use runtime::run;
