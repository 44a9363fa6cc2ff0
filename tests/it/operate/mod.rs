//! Rules of operators. The rows of processors are written here as they are stored.
mod actions;
mod breakers;
mod jobs;
mod lists;
mod world;
