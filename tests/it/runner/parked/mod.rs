//! Parked streams, dead letters, and the requests of operators about them.
mod assignment;
mod lanes;
mod letters;
mod operator;
mod simulation;
mod streams;
mod views;
