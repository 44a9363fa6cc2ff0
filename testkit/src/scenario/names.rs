//! Names of ids and types as the scenarios write them.
use foldstream::{Aggregate, BoxError, DomainEvent, chain};
use std::fmt::Display;

/// Returns the id of an aggregate from its text, or from the id itself.
///
/// # Panics
/// If the text is not an id, or if it is read as an id with another text. Commands would then go to
/// another stream than the test says.
#[track_caller]
pub(super) fn typed_id<A: Aggregate>(id: impl Display) -> A::Id {
    let (text, aggregate) = (id.to_string(), A::Event::AGGREGATE);
    match text.parse::<A::Id>() {
        Ok(id) if id.to_string() == text => id,
        Ok(id) => panic!(
            "{text:?} is read as the id \"{id}\" of {aggregate}, which names another stream: write the id as it shows \
             itself, or mend its `FromStr`"
        ),
        Err(error) => {
            let error: BoxError = error.into();
            panic!("{text:?} is no id of {aggregate}: {}", chain(&*error))
        }
    }
}

/// Returns the name of a type without the modules that it is in.
pub(crate) fn short_type_name<T>() -> String {
    let mut short = String::new();
    for part in std::any::type_name::<T>().split_inclusive(['<', '>', ',', ' ', '&', '(', ')']) {
        short.push_str(part.rsplit("::").next().unwrap_or(part));
    }
    short
}
