//! The comparison of two values of one type by the data that serde sees of them.
//!
//! The state of a snapshot need not have [`PartialEq`], and an event with NaN does not equal
//! itself. JSON text cannot be compared instead: it is the same for `Some(None)` and `None`, or for
//! `Some(NaN)` and `None`, and it differs for two equal [`HashMap`](std::collections::HashMap)s.
//! Therefore both values are serialized into a hash that distinguishes all kinds of serde's data
//! model, and that does not depend on the order of the elements of sequences and maps.
use crate::DomainEvent;
use serde::{Serialize, ser};
use std::{
    fmt::{self, Display},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Returns true if the two values serialize the same data. Returns false if either cannot be
/// serialized. The order of the elements of a sequence or map, and fields that are not serialized,
/// are not compared.
pub(crate) fn same_data<T: Serialize + ?Sized>(a: &T, b: &T) -> bool {
    data_hash(a).is_some_and(|a| data_hash(b) == Some(a))
}

/// Returns the hash of the data that a value serializes; `None` if it cannot be serialized.
#[doc(hidden)]
pub fn data_hash(value: &(impl Serialize + ?Sized)) -> Option<u64> {
    value.serialize(DataHash).ok()
}

/// Compares as the derived [`DomainEvent::equals_decoded`] does: values that do not equal
/// themselves are compared by their data.
#[doc(hidden)]
#[allow(clippy::eq_op, reason = "a value with NaN does not equal itself")]
pub fn event_equals_decoded<E: DomainEvent>(
    event: &E,
    decoded: &E,
    data: fn(&E) -> Option<u64>,
) -> bool {
    if event == event || decoded == decoded {
        return event == decoded;
    }
    let is_same_type = event.type_index() == decoded.type_index();
    is_same_type && data(event).is_some_and(|event| data(decoded) == Some(event))
}

#[derive(Debug)]
struct NotHashed;
impl Display for NotHashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value cannot be serialized")
    }
}
impl std::error::Error for NotHashed {}
impl ser::Error for NotHashed {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

/// A serializer whose output is a hash of the value.
struct DataHash;

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The elements of a sequence or a map, in any order.
struct Unordered {
    kind: &'static str,
    len: u64,
    sum: u64,
    /// The hash of the key whose value comes next.
    key: u64,
}

impl Unordered {
    const fn of(kind: &'static str) -> Self {
        Self {
            kind,
            len: 0,
            sum: 0,
            key: 0,
        }
    }
    fn add(&mut self, element: u64) {
        self.len += 1;
        self.sum = self.sum.wrapping_add(element);
    }
    fn hash(&self) -> u64 {
        hash((self.kind, self.len, self.sum))
    }
}

/// The fields of a struct or a tuple, in their order.
struct Ordered(DefaultHasher);

impl Ordered {
    fn of(kind: &'static str, name: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        Self(hasher)
    }
}

macro_rules! scalars {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method(self, v: $type) -> Result<u64, NotHashed> { Ok(hash((stringify!($type), v))) })+
    };
}

impl ser::Serializer for DataHash {
    type Ok = u64;
    type Error = NotHashed;
    type SerializeSeq = Unordered;
    type SerializeTuple = Ordered;
    type SerializeTupleStruct = Ordered;
    type SerializeTupleVariant = Ordered;
    type SerializeMap = Unordered;
    type SerializeStruct = Ordered;
    type SerializeStructVariant = Ordered;

    scalars!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8]);

    fn serialize_f32(self, v: f32) -> Result<u64, NotHashed> {
        Ok(hash(("f32", v.to_bits())))
    }
    fn serialize_f64(self, v: f64) -> Result<u64, NotHashed> {
        Ok(hash(("f64", v.to_bits())))
    }
    fn serialize_none(self) -> Result<u64, NotHashed> {
        Ok(hash("none"))
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<u64, NotHashed> {
        Ok(hash(("some", value.serialize(self)?)))
    }
    fn serialize_unit(self) -> Result<u64, NotHashed> {
        Ok(hash("unit"))
    }
    fn serialize_unit_struct(self, name: &'static str) -> Result<u64, NotHashed> {
        Ok(hash(("unit struct", name)))
    }
    fn serialize_unit_variant(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
    ) -> Result<u64, NotHashed> {
        Ok(hash(("unit variant", index, name)))
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<u64, NotHashed> {
        Ok(hash(("newtype struct", name, value.serialize(self)?)))
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
        value: &T,
    ) -> Result<u64, NotHashed> {
        let value = value.serialize(self)?;
        Ok(hash(("newtype variant", index, name, value)))
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Unordered, NotHashed> {
        Ok(Unordered::of("seq"))
    }
    fn serialize_tuple(self, _: usize) -> Result<Ordered, NotHashed> {
        Ok(Ordered::of("tuple", ""))
    }
    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Ordered, NotHashed> {
        Ok(Ordered::of("tuple struct", name))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Ordered, NotHashed> {
        Ok(Ordered::of("tuple variant", (index, name)))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Unordered, NotHashed> {
        Ok(Unordered::of("map"))
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Ordered, NotHashed> {
        Ok(Ordered::of("struct", name))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Ordered, NotHashed> {
        Ok(Ordered::of("struct variant", (index, name)))
    }
    // As JSON does it: types that are text for readers are compared as that text.
    fn is_human_readable(&self) -> bool {
        true
    }
}

impl ser::SerializeSeq for Unordered {
    type Ok = u64;
    type Error = NotHashed;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotHashed> {
        self.add(value.serialize(DataHash)?);
        Ok(())
    }
    fn end(self) -> Result<u64, NotHashed> {
        Ok(self.hash())
    }
}

impl ser::SerializeMap for Unordered {
    type Ok = u64;
    type Error = NotHashed;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotHashed> {
        self.key = key.serialize(DataHash)?;
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotHashed> {
        let value = value.serialize(DataHash)?;
        self.add(hash((self.key, value)));
        Ok(())
    }
    fn end(self) -> Result<u64, NotHashed> {
        Ok(self.hash())
    }
}

macro_rules! in_order {
    ($($trait:ident::$method:ident),+ $(,)?) => {
        $(impl ser::$trait for Ordered {
            type Ok = u64;
            type Error = NotHashed;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotHashed> {
                value.serialize(DataHash)?.hash(&mut self.0);
                Ok(())
            }
            fn end(self) -> Result<u64, NotHashed> { Ok(self.0.finish()) }
        })+
    };
}
in_order!(
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
);

macro_rules! named_fields {
    ($($trait:ident),+) => {
        $(impl ser::$trait for Ordered {
            type Ok = u64;
            type Error = NotHashed;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), NotHashed> {
                (name, value.serialize(DataHash)?).hash(&mut self.0);
                Ok(())
            }
            fn end(self) -> Result<u64, NotHashed> { Ok(self.0.finish()) }
        })+
    };
}
named_fields!(SerializeStruct, SerializeStructVariant);

#[cfg(test)]
mod tests {
    use super::same_data;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn values_that_have_the_same_json_are_told_apart() {
        assert!(!same_data(&Some(None::<u8>), &None));
        assert!(!same_data(&Some(()), &None));
        assert!(!same_data(&Some(f64::NAN), &None));
        assert!(!same_data(&[0.0_f64], &[-0.0]));
        assert!(!same_data(&vec![1, 2], &vec![1, 1, 2]));
        assert!(same_data(&Some(f64::NAN), &Some(f64::NAN)));
    }

    #[test]
    fn maps_and_sets_are_the_same_in_any_order() {
        let map = || (0..1000).map(|n| (n, n * n)).collect::<HashMap<u32, u32>>();
        let set = || (0..1000).collect::<HashSet<u32>>();
        assert!(same_data(&(map(), set()), &(map(), set())));
        let mut other = map();
        other.insert(7, 48);
        assert!(!same_data(&map(), &other));
        // A key and a value that change places.
        assert!(!same_data(
            &[(1, 2)].into_iter().collect::<HashMap<_, _>>(),
            &[(2, 1)].into()
        ));
    }
}
