//! `Debug` output as a Rust expression that can be pasted into a test.
//!
//! `Debug` output is not Rust: a text lacks its `.into()`, and lists and maps lack their types.
//! Where the output has the shape that `#[derive(Debug)]` gives, it is rewritten. Everything else
//! is passed on unchanged, to be completed by hand.

/// Rewrites the output of one value. Variants stand without their enum, as `use Event::*` makes
/// them known.
pub(super) fn expression(debug: &str) -> String {
    let mut reader = Reader { rest: debug };
    match reader.value() {
        Some(text) if reader.rest.is_empty() => text,
        _ => debug.into(),
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    fn value(&mut self) -> Option<String> {
        match self.rest.chars().next()? {
            '"' => Some(format!("{}.into()", self.quoted('"')?)),
            '\'' => self.quoted('\'').map(Into::into),
            '[' => self.list().map(|list| format!("{list}.into()")),
            '{' => self.entries().map(|list| format!("{list}.into()")),
            '(' => self.tuple(),
            c if c.is_alphabetic() || c == '_' => self.named(),
            c if c.is_ascii_digit() || c == '-' => self.number().map(Into::into),
            _ => None,
        }
    }

    /// Reads a literal with its quotes. Escapes are the same in `Debug` and in Rust.
    fn quoted(&mut self, quote: char) -> Option<&'a str> {
        let mut is_escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                _ if c == quote => return Some(self.take(at + c.len_utf8())),
                _ => {}
            }
        }
        None
    }

    fn number(&mut self) -> Option<&'a str> {
        let end = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
        let text = self.take(self.rest.find(end).unwrap_or(self.rest.len()));
        // `1s`, a duration, is not a number, and neither is a date.
        text.parse::<f64>().is_ok().then_some(text)
    }

    /// Reads values up to `close`, each with `item`, with commas between them.
    fn items(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Option<String>,
    ) -> Option<Vec<String>> {
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() && !self.eat(", ") {
                return None;
            }
            // A tuple of one element ends in a comma.
            if !items.is_empty() && self.eat(close) {
                return Some(items);
            }
            items.push(item(self)?);
            if self.rest.starts_with(",)") {
                self.eat(",");
            }
        }
        Some(items)
    }

    fn list(&mut self) -> Option<String> {
        self.eat("[");
        let items = self.items("]", Self::value)?;
        Some(format!("[{}]", items.join(", ")))
    }

    /// Reads a set or a map.
    fn entries(&mut self) -> Option<String> {
        self.eat("{");
        let items = self.items("}", |reader| {
            let key = reader.value()?;
            if reader.eat(": ") {
                let value = reader.value()?;
                return Some(format!("({key}, {value})"));
            }
            Some(key)
        })?;
        Some(format!("[{}]", items.join(", ")))
    }

    fn tuple(&mut self) -> Option<String> {
        self.eat("(");
        let items = self.items(")", Self::value)?;
        let comma = if items.len() == 1 { "," } else { "" };
        Some(format!("({}{comma})", items.join(", ")))
    }

    /// Reads a unit, a tuple struct or a struct with fields.
    fn named(&mut self) -> Option<String> {
        let end = |c: char| !(c.is_alphanumeric() || c == '_');
        let name = self.take(self.rest.find(end).unwrap_or(self.rest.len()));
        if self.eat(" { ") {
            let fields = self.items(" }", |reader| {
                let end = reader.rest.find(": ")?;
                let field = reader.take(end);
                reader.eat(": ");
                Some(format!("{field}: {}", reader.value()?))
            })?;
            return Some(format!("{name} {{ {} }}", fields.join(", ")));
        }
        if !self.rest.starts_with('(') {
            return Some(name.into());
        }
        self.eat("(");
        let items = self.items(")", Self::value)?;
        Some(match (name, items.as_slice()) {
            ("Timestamp", [micros]) => format!("Timestamp::from_micros({micros})"),
            ("Version", [number]) => format!("Version::new({number})"),
            // A typed id takes its text without a conversion.
            (id, [text]) if id.ends_with("Id") && text.ends_with("\".into()") => {
                format!("{id}::from({})", text.trim_end_matches(".into()"))
            }
            (name, items) => format!("{name}({})", items.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream::{Timestamp, Version};
    use std::collections::{BTreeMap, BTreeSet};

    foldstream::id!(ItemId);

    #[derive(Clone, Debug, PartialEq)]
    enum Sample {
        Unit,
        Tuple(i64, f64, char, bool, (u8,)),
        Fields {
            id: ItemId,
            text: String,
            list: Vec<Option<String>>,
            none: Vec<u8>,
            map: BTreeMap<String, u32>,
            set: BTreeSet<u32>,
            at: Timestamp,
            version: Version,
        },
    }
    use Sample::{Fields, Tuple, Unit};

    #[test]
    fn what_derive_prints_becomes_an_expression_that_compiles() {
        let fields = Fields {
            id: ItemId::from("i-1"),
            text: "a \"b\" \\ ä\n, (".into(),
            list: [Some("x".into()), None].into(),
            none: [].into(),
            map: [("k".into(), 1)].into(),
            set: [1, 2].into(),
            at: Timestamp::from_micros(5),
            version: Version::new(7),
        };
        let text = "Fields { id: ItemId::from(\"i-1\"), text: \"a \\\"b\\\" \\\\ ä\\n, (\".into(), \
                    list: [Some(\"x\".into()), None].into(), none: [].into(), map: [(\"k\".into(), 1)].into(), \
                    set: [1, 2].into(), at: Timestamp::from_micros(5), version: Version::new(7) }";
        assert_eq!(expression(&format!("{fields:?}")), text);
        let tuple = Tuple(-1, 2.5, '\'', true, (3,));
        assert_eq!(
            expression(&format!("{tuple:?}")),
            "Tuple(-1, 2.5, '\\'', true, (3,))"
        );
        assert_eq!(expression(&format!("{Unit:?}")), "Unit");
    }

    #[test]
    fn what_is_no_derived_shape_is_passed_on() {
        for text in [
            "Wait(1s)",
            "Opaque { .. }",
            "StreamId(cart#a)",
            "\"unclosed",
            "<hidden>",
            "",
        ] {
            assert_eq!(expression(text), text);
        }
    }
}
