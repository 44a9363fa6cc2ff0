//! The runner's side of a replay: the generation beside the one that serves, and the switch.
mod deletion;
mod harness;
mod in_place;
mod models;
mod release;
mod switch;
mod wait_for;
mod whole;
