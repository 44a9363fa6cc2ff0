//! Progress of long work, drawn on a terminal and nowhere else.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar for work whose length is known. Where standard error is no terminal, it is hidden.
pub fn bar(what: &'static str, length: u64) -> ProgressBar {
    // The template is a constant: if it were wrong, the default bar would do.
    let style =
        ProgressStyle::with_template("{msg:12} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(what)
}

/// A sign of life for work whose length is not known.
pub fn spinner(what: &'static str) -> ProgressBar {
    let spinner =
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
