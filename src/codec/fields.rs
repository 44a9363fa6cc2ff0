//! The functions with which the derive of [`DomainEvent`](crate::DomainEvent) writes and reads a
//! field.
//!
//! A method call on a concrete type prefers a method that takes the receiver as it is to one that
//! needs another reference. So `(&Write(value)).__foldstream_write(..)` calls serde, or, if the
//! field's type lacks serde, a function that returns an error. That function is never called,
//! because then the assertion [`HasSerde`] does not compile, and its error is the only one that the
//! user sees. The methods have names of their own: with a common name, a trait for every type that
//! is in scope at the enum would make the call ambiguous.
#![allow(missing_docs, reason = "only generated code sees these")]
use serde::{Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::marker::PhantomData;

const NO_SERDE: &str = "the type of the field lacks serde";

/// Tells if a type can be written and read: `<HasSerde<T>>::YES`.
#[derive(Debug)]
pub struct HasSerde<T>(PhantomData<T>);
impl<T: Serialize + DeserializeOwned> HasSerde<T> {
    pub const YES: bool = true;
}
/// Tells if a type can be written.
#[derive(Debug)]
pub struct HasSerialize<T>(PhantomData<T>);
impl<T: Serialize> HasSerialize<T> {
    pub const YES: bool = true;
}
/// Tells if a type can be read.
#[derive(Debug)]
pub struct HasDeserialize<T>(PhantomData<T>);
impl<T: DeserializeOwned> HasDeserialize<T> {
    pub const YES: bool = true;
}
pub trait NoSerde {
    const YES: bool = false;
}
impl<T> NoSerde for HasSerde<T> {}
impl<T> NoSerde for HasSerialize<T> {}
impl<T> NoSerde for HasDeserialize<T> {}

#[derive(Debug)]
pub struct Write<'a, T>(pub &'a T);
pub trait WriteSerde {
    fn __foldstream_write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}
impl<T: Serialize> WriteSerde for Write<'_, T> {
    fn __foldstream_write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
pub trait WriteAny {
    fn __foldstream_write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}
impl<T> WriteAny for &Write<'_, T> {
    fn __foldstream_write<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom(NO_SERDE))
    }
}

#[derive(Debug)]
pub struct Read<T>(PhantomData<T>);
impl<T> Read<T> {
    pub const NEW: Self = Self(PhantomData);
}
pub trait ReadSerde<T> {
    fn __foldstream_read<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<T, D::Error>;
}
impl<T: DeserializeOwned> ReadSerde<T> for Read<T> {
    fn __foldstream_read<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(deserializer)
    }
}
pub trait ReadAny<T> {
    fn __foldstream_read<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<T, D::Error>;
}
impl<T> ReadAny<T> for &Read<T> {
    fn __foldstream_read<'de, D: Deserializer<'de>>(&self, _: D) -> Result<T, D::Error> {
        Err(serde::de::Error::custom(NO_SERDE))
    }
}
