//! A cache and a lock per key, in bounded memory.
//!
//! Both are used with streams as keys. Neither is a source of truth: a value that the cache has
//! forgotten is read again, and a lock orders only the work of one process.
mod cache;
mod lock;

pub(crate) use cache::RecentlyUsed;
pub(crate) use lock::{Guard, KeyedLock};
