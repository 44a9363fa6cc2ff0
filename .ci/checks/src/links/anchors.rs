//! The anchors that GitHub makes of headings.
use std::collections::HashMap;

/// The anchors of one file. The second heading with a name gets `-1`, the third `-2`.
#[derive(Debug, Default)]
pub(super) struct Anchors(HashMap<String, usize>);

impl Anchors {
    /// Returns the anchor of the next heading: in lower case, without punctuation, with a hyphen
    /// for each space.
    pub(super) fn of(&mut self, heading: &str) -> String {
        let kept = heading
            .trim()
            .chars()
            .filter(|&c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept
            .map(|c| if c == ' ' { '-' } else { c })
            .flat_map(char::to_lowercase)
            .collect();
        let seen = self.0.entry(anchor.clone()).or_default();
        *seen += 1;
        match *seen - 1 {
            0 => anchor,
            n => format!("{anchor}-{n}"),
        }
    }
}
