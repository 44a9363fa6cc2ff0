//! The name of the host.
use std::sync::Arc;

/// The files in which the name stands, as Linux has them.
const FILES: [&str; 2] = ["/proc/sys/kernel/hostname", "/etc/hostname"];

/// Returns the name of the host, or `unknown` if no file tells it.
pub(crate) fn name() -> Arc<str> {
    let names = FILES
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok());
    let mut names = names.filter_map(|name| {
        let name = name.trim();
        (!name.is_empty() && name.len() <= 200).then(|| name.into())
    });
    names.next().unwrap_or_else(|| "unknown".into())
}
