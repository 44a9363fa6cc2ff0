//! Parked streams, dead letters, and the requests of operators about them.
mod assignment;
mod batches;
mod discards;
mod given_up;
mod half_done;
mod lanes;
mod late;
mod letter_rows;
mod letter_topic;
mod letters;
mod operator;
mod positions;
mod simulation;
mod streams;
mod sweep;
mod views;
mod without_store;
