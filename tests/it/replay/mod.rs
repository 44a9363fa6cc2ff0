//! Replays on the in-memory adapters.
mod choice;
mod failure;
mod full;
mod memory;
mod operate;
mod rebuild;
mod simulation;
mod world;
