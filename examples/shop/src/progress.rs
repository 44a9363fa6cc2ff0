//! Progress of long work, drawn on terminals only.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Creates a bar for work of known length. It is hidden if standard error is not a terminal.
pub fn bar(what: &'static str, length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let template = "{msg} {wide_bar} {human_pos}/{human_len} {eta}";
    bar.set_style(style(template, ProgressStyle::default_bar()));
    bar.with_message(what)
}

/// Creates a counter for work of unknown length. It is hidden if standard error is not a terminal.
pub fn counter(what: &'static str) -> ProgressBar {
    let counter = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    counter.set_style(style(
        "{spinner} {msg} {human_pos}",
        ProgressStyle::default_spinner(),
    ));
    counter.enable_steady_tick(Duration::from_millis(100));
    counter.with_message(what)
}

/// Parses a template. All templates are constants, so `default` is never used in practice.
fn style(template: &str, default: ProgressStyle) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or(default)
}
