//! Rules of the machine, one test each: inputs in, effects out, and the time moved by hand.
mod breaker;
mod checkpoint;
mod driven;
mod membership;
mod parked;
mod rebalance;
mod wake;
mod window;
