//! The characters that ids, names and CloudEvents attributes may hold.

/// Returns the first character of `text` that a CloudEvents string must not hold: a control
/// character (C0, DEL, C1) or a Unicode noncharacter.
///
/// Stream ids and event names become parts of record keys, headers and row keys. Rows are keyed by
/// several ids joined with U+001F, and readers in other languages refuse or drop records whose
/// attributes hold such characters.
pub(crate) fn forbidden_char(text: &str) -> Option<char> {
    text.chars().find(|c| c.is_control() || is_noncharacter(*c))
}

const fn is_noncharacter(c: char) -> bool {
    let code = c as u32;
    matches!(code, 0xFDD0..=0xFDEF) || code & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_noncharacters_are_forbidden_and_nothing_else_is() {
        for code in 0..=0x10_FFFF {
            let Some(c) = char::from_u32(code) else {
                continue;
            };
            let is_control = code < 0x20 || (0x7F..=0x9F).contains(&code);
            let is_noncharacter = (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFF >= 0xFFFE;
            let expected = (is_control || is_noncharacter).then_some(c);
            assert_eq!(forbidden_char(&format!("a{c}b")), expected, "U+{code:04X}");
        }
    }
}
