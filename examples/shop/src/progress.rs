//! Progress of long work, drawn on a terminal and nowhere else.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar for work whose length is known. Where standard error is no terminal, it is hidden.
pub fn bar(what: &'static str, length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let template = "{msg} {wide_bar} {human_pos}/{human_len} {eta}";
    bar.set_style(style(template, ProgressStyle::default_bar()));
    bar.with_message(what)
}

/// A counter for work whose length is not known. Where standard error is no terminal, it is hidden.
pub fn counter(what: &'static str) -> ProgressBar {
    let counter = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    counter.set_style(style(
        "{spinner} {msg} {human_pos}",
        ProgressStyle::default_spinner(),
    ));
    counter.enable_steady_tick(Duration::from_millis(100));
    counter.with_message(what)
}

/// The templates are constants: if one were wrong, the default would do.
fn style(template: &str, default: ProgressStyle) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or(default)
}
