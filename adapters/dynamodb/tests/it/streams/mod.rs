//! The reader of the change stream, on a scripted stream and on emulators.
mod script;
mod world;
mod shards;
mod iterators;
mod instances;
mod covered;
mod simulation;
mod emulator;
