//! Differences between two JSON values, as values.
//!
//! # Why not index by index?
//! The state of a stream grows at the end of its lists, and commands take elements out of their
//! middle. Compared index by index, a list that has lost its first element would differ in all of
//! them. So the equal elements at both ends of two lists are set aside first, and only what lies
//! between is compared.
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// One place at which two JSON values differ.
///
/// # Example
/// ```
/// use foldstream::Difference;
/// use serde_json::json;
///
/// let mut cart = json!({ "items": ["tea", "cup"], "is_ordered": false });
/// let later = json!({ "items": ["cup"], "is_ordered": true });
/// let differences = Difference::between(&cart, &later);
/// let paths: Vec<_> = differences.iter().map(|of| of.path.as_str()).collect();
/// assert_eq!(paths, ["/is_ordered", "/items/0"]);
/// assert_eq!(differences[1].before, Some(json!("tea")));
/// assert_eq!(differences[1].after, None);
///
/// Difference::apply_all(&differences, &mut cart)?;
/// assert_eq!(cart, later);
/// # Ok::<(), foldstream::InapplicableDifference>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The place as a JSON pointer (RFC 6901), such as `/items/0/quantity`. Empty for the whole
    /// value.
    pub path: String,
    /// The value at this place before; `None` if there was none.
    pub before: Option<Value>,
    /// The value at this place afterwards; `None` if there is none.
    pub after: Option<Value>,
}

/// The error returned when a value is not the one that a difference was computed from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value at {path:?} is not the one before the difference")]
#[non_exhaustive]
pub struct InapplicableDifference {
    /// The place of the difference.
    pub path: String,
}

impl Difference {
    /// Returns the differences between two values, in the order in which they are applied. Equal
    /// values have none.
    ///
    /// Objects are compared by their keys, whatever the order of these. Lists are compared after
    /// the equal elements at both ends were set aside. An element that was added or removed is one
    /// difference. An element that was removed is named by its index before the change, and an
    /// element that was added by its index afterwards. Numbers are equal if they are written alike:
    /// `1` differs from `1.0`.
    #[must_use]
    pub fn between(before: &Value, after: &Value) -> Vec<Self> {
        let mut found = Vec::new();
        compare(&mut String::new(), before, after, &mut found);
        found
    }

    /// Makes the value before a difference the value after it.
    ///
    /// # Errors
    /// [`InapplicableDifference`] if the value has something else at this place. It is unchanged
    /// then.
    pub fn apply(&self, value: &mut Value) -> Result<(), InapplicableDifference> {
        self.applied(value).ok_or_else(|| InapplicableDifference {
            path: self.path.clone(),
        })
    }

    /// Applies the differences of one comparison in their order.
    ///
    /// # Errors
    /// [`InapplicableDifference`] if the value is not the one before the differences. Those that
    /// come first may have been applied then.
    pub fn apply_all(
        differences: &[Self],
        value: &mut Value,
    ) -> Result<(), InapplicableDifference> {
        differences.iter().try_for_each(|of| of.apply(value))
    }

    fn applied(&self, value: &mut Value) -> Option<()> {
        let Some((parent, last)) = self.path.rsplit_once('/') else {
            // The whole value is always there.
            let (before, after) = (self.before.as_ref()?, self.after.as_ref()?);
            return (self.path.is_empty() && value == before).then(|| *value = after.clone());
        };
        match value.pointer_mut(parent)? {
            Value::Object(fields) => self.in_object(fields, &unescaped(last)),
            Value::Array(items) => self.in_list(items, last.parse().ok()?),
            _ => None,
        }
    }

    fn in_object(&self, fields: &mut Map<String, Value>, key: &str) -> Option<()> {
        if fields.get(key) != self.before.as_ref() {
            return None;
        }
        match &self.after {
            Some(after) => drop(fields.insert(key.to_owned(), after.clone())),
            None => drop(fields.remove(key)),
        }
        Some(())
    }

    fn in_list(&self, items: &mut Vec<Value>, index: usize) -> Option<()> {
        match (&self.before, &self.after) {
            (None, Some(after)) if index <= items.len() => items.insert(index, after.clone()),
            (Some(before), after) if items.get(index) == Some(before) => match after {
                Some(after) => items[index] = after.clone(),
                None => drop(items.remove(index)),
            },
            _ => return None,
        }
        Some(())
    }
}

fn compare(path: &mut String, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            compare_objects(path, before, after, found);
        }
        (Value::Array(before), Value::Array(after)) => compare_lists(path, before, after, found),
        (before, after) if before == after => {}
        (before, after) => note(path, Some(before), Some(after), found),
    }
}

fn compare_objects(
    path: &mut String,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let (before, after) = (before.get(key), after.get(key));
        within(path, &escaped(key), |path| match (before, after) {
            (Some(before), Some(after)) => compare(path, before, after, found),
            (before, after) => note(path, before, after, found),
        });
    }
}

fn compare_lists(
    path: &mut String,
    before: &[Value],
    after: &[Value],
    found: &mut Vec<Difference>,
) {
    let same = |(before, after): &(&Value, &Value)| before == after;
    let first = before.iter().zip(after).take_while(same).count();
    let (before, after) = (&before[first..], &after[first..]);
    let last = before.iter().rev().zip(after.iter().rev());
    let last = last.take_while(same).count();
    let before = &before[..before.len() - last];
    let after = &after[..after.len() - last];
    let both = before.len().min(after.len());
    for index in 0..both {
        within(path, &(first + index).to_string(), |path| {
            compare(path, &before[index], &after[index], found);
        });
    }
    // From the last on, so that each is removed at the index that it had.
    for index in (both..before.len()).rev() {
        within(path, &(first + index).to_string(), |path| {
            note(path, Some(&before[index]), None, found);
        });
    }
    for (index, added) in after.iter().enumerate().skip(both) {
        within(path, &(first + index).to_string(), |path| {
            note(path, None, Some(added), found);
        });
    }
}

/// Calls a function with the path of a place within this one.
fn within(path: &mut String, token: &str, visit: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push('/');
    path.push_str(token);
    visit(path);
    path.truncate(length);
}

fn note(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Difference>) {
    found.push(Difference {
        path: path.to_owned(),
        before: before.cloned(),
        after: after.cloned(),
    });
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
fn unescaped(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    /// Values of few kinds and keys, so that two of them are often alike in part.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3u64).prop_map(Value::from),
            Just(Value::from(1.0)),
            "[ab]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let key = prop_oneof![
                "[ab]",
                Just("/".into()),
                Just("~".into()),
                Just("~1".into())
            ];
            let key = prop_oneof![key, Just(String::new()), Just("0".into())];
            prop_oneof![
                vec(inner.clone(), 0..6).prop_map(Value::from),
                vec((key, inner), 0..5).prop_map(|fields| fields.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_differences_make_the_former_value_the_latter(
            before in values(),
            after in values(),
        ) {
            let differences = Difference::between(&before, &after);
            let mut value = before.clone();
            Difference::apply_all(&differences, &mut value).unwrap();
            prop_assert_eq!(&value, &after);
            prop_assert_eq!(differences.is_empty(), before == after);
            // No difference says the same on both sides.
            prop_assert!(differences.iter().all(|of| of.before != of.after));
        }

        #[test]
        fn a_difference_that_does_not_fit_changes_nothing(
            before in values(),
            after in values(),
            other in values(),
        ) {
            for difference in Difference::between(&before, &after) {
                let mut value = other.clone();
                if difference.apply(&mut value).is_err() {
                    prop_assert_eq!(&value, &other);
                } else {
                    prop_assert_ne!(&value, &other);
                }
            }
        }
    }

    fn lines(before: &Value, after: &Value) -> Vec<String> {
        let text = |side: &Option<Value>| side.as_ref().map_or("-".into(), Value::to_string);
        let found = Difference::between(before, after);
        let found = found.iter();
        found
            .map(|of| format!("{} {} {}", of.path, text(&of.before), text(&of.after)))
            .collect()
    }

    #[test]
    fn an_element_that_leaves_the_middle_of_a_list_is_one_difference() {
        let before = json!([{ "sku": 1 }, { "sku": 2 }, { "sku": 3 }]);
        let after = json!([{ "sku": 1 }, { "sku": 3 }]);
        assert_eq!(lines(&before, &after), [r#"/1 {"sku":2} -"#]);
        assert_eq!(lines(&after, &before), [r#"/1 - {"sku":2}"#]);
    }

    #[test]
    fn elements_that_leave_are_named_by_the_indexes_that_they_had() {
        let found = lines(&json!([1, 2, 3, 4]), &json!([1, 4]));
        assert_eq!(found, ["/2 3 -", "/1 2 -"]);
        let found = lines(&json!([1, 4]), &json!([1, 2, 3, 4]));
        assert_eq!(found, ["/1 - 2", "/2 - 3"]);
    }

    #[test]
    fn an_element_that_changes_is_compared_within() {
        let before = json!([{ "sku": 1, "units": 1 }, { "sku": 2, "units": 1 }]);
        let after = json!([{ "sku": 1, "units": 1 }, { "sku": 2, "units": 5 }]);
        assert_eq!(lines(&before, &after), ["/1/units 1 5"]);
    }

    #[test]
    fn keys_are_escaped_and_null_is_not_absence() {
        let found = lines(
            &json!({ "a/b": 1, "~": null }),
            &json!({ "a/b": 2, "c": null }),
        );
        assert_eq!(found, ["/a~1b 1 2", "/c - null", "/~0 null -"]);
    }

    #[test]
    fn a_value_of_another_kind_is_one_difference_of_the_whole() {
        let found = lines(&json!("Pending"), &json!({ "Settled": 1 }));
        assert_eq!(found, [r#" "Pending" {"Settled":1}"#]);
    }
}
