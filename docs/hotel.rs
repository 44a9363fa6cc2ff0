//! The hotel of the tutorial. Each file is shown by the chapter that introduces it.
#![allow(missing_docs, reason = "the chapters explain the hotel")]

pub mod arrivals;
pub mod booking;
pub mod front_desk;
pub mod http;
pub mod release_2;
pub mod room;
pub mod service;
