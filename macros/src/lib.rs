//! `#[derive(DomainEvent)]`: stored names, schema versions and an untagged payload for every
//! variant of an enum. `foldstream` exports it again; use it from there.
mod attributes;
mod payload;

use attributes::{EnumOptions, VariantOptions};
use payload::Payload;
use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use std::collections::HashSet;
use syn::{Data, DataEnum, DeriveInput, Error, Fields, Result, Variant, parse_macro_input};

/// Implements `DomainEvent` for an enum.
///
/// On the enum:
/// - `#[event(aggregate = "cart")]`: the stored name of the aggregate type
///   (`[A-Za-z0-9_.-]{1,64}`). Required.
/// - `#[event(upcasters = path)]`: a function `fn() -> Upcasters` that returns the upcasters of
///   older payloads. Default: none.
///
/// On a variant: `#[event(name = "ItemAdded", version = 2)]`, both optional. The stored name
/// defaults to the variant's name and the schema version to 1. Renaming a variant without a `name`
/// changes what is stored.
///
/// A variant is a struct, a newtype or a unit. The payload of a struct is a JSON object of its
/// fields, and `#[serde(...)]` on the fields applies. The payload of a newtype is the inner value
/// as serde writes it, and that of a unit is `{}`. A payload contains neither name nor version.
/// Therefore `#[serde(...)]` on the enum, on a variant or on a newtype's field would have no
/// effect, and is an error. The documentation of the trait has examples.
#[proc_macro_derive(DomainEvent, attributes(event, serde))]
pub fn domain_event(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput))
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

/// The parts that one variant adds to the generated methods.
struct Arms {
    event_type: Tokens,
    index_of: Tokens,
    encode: Tokens,
    data: Tokens,
    decode: Tokens,
    deserialize: Tokens,
    /// The variant in the shadow of the enum.
    shadow: Tokens,
    /// The items that the arms use.
    items: Tokens,
}

fn expand(input: &DeriveInput) -> Result<Tokens> {
    let ty = &input.ident;
    let data = enum_of_events(input)?;
    attributes::check_serde(input, data)?;
    let data = &payload::without_self(ty, data)?;
    let EnumOptions {
        aggregate,
        upcasters,
    } = EnumOptions::of(input)?;
    let mut seen = HashSet::new();
    let mut arms = Vec::with_capacity(data.variants.len());
    for (index, variant) in data.variants.iter().enumerate() {
        arms.push(variant_arms(index, variant, &mut seen)?);
    }
    let types = arms.iter().map(|a| &a.event_type);
    let index_of = arms.iter().map(|a| &a.index_of);
    let encode = arms.iter().map(|a| &a.encode);
    let data_of = arms.iter().map(|a| &a.data);
    let decode = arms.iter().map(|a| &a.decode);
    let deserialize = arms.iter().map(|a| &a.deserialize);
    let items = arms.iter().map(|a| &a.items);
    let shadow = payload::shadow(ty, data, arms.iter().map(|a| &a.shadow));
    let upcasters =
        upcasters.map(|path| quote!(fn upcasters() -> ::foldstream::Upcasters { #path() }));
    let serde = quote!(::foldstream::__private::serde);
    let err = quote!(::core::result::Result::Err);
    let allowed = attributes::allowed_lints(input, data);
    Ok(quote! { #allowed const _: () = {
        #shadow
        #(#items)*
        /// Computes the hash of an event's fields as they are serialized.
        trait __FoldstreamData { fn data(&self) -> ::core::option::Option<u64>; }
        impl __FoldstreamData for #ty {
            fn data(&self) -> ::core::option::Option<u64> { match self { #(#data_of),* } }
        }
        #[automatically_derived]
        impl ::foldstream::DomainEvent for #ty {
            const AGGREGATE: &'static str = #aggregate;
            const TYPES: &'static [::foldstream::EventType] = &[#(#types),*];
            fn type_index(&self) -> usize { match self { #(#index_of),* } }
            fn encode(&self, out: &mut ::std::vec::Vec<u8>) -> ::core::result::Result<(), ::foldstream::CodecError> {
                match self { #(#encode),* }
            }
            fn decode(type_index: usize, payload: &[u8]) -> ::core::result::Result<Self, ::foldstream::CodecError> {
                match type_index { #(#decode,)* other => #err(::foldstream::__private::bad_index(other)) }
            }
            fn equals_decoded(&self, decoded: &Self) -> bool {
                ::foldstream::__private::event_equals_decoded(self, decoded, __FoldstreamData::data)
            }
            #upcasters
        }
        #[automatically_derived]
        impl ::foldstream::DeserializePayload for #ty {
            fn deserialize_payload<'__de, __D: #serde::Deserializer<'__de>>(type_index: usize, deserializer: __D)
                -> ::core::result::Result<Self, __D::Error> {
                match type_index {
                    #(#deserialize,)*
                    other => #err(#serde::de::Error::custom(::foldstream::__private::bad_index(other))),
                }
            }
        }
    }; })
}

/// Returns the enum that `input` declares, or an error if its shape cannot be stored.
fn enum_of_events(input: &DeriveInput) -> Result<&DataEnum> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(
            &input.ident,
            "DomainEvent is for an enum with one variant per event",
        ));
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &input.generics,
            "a stored event has no type parameters",
        ));
    }
    if data.variants.is_empty() {
        return Err(Error::new_spanned(
            &input.ident,
            "an aggregate needs at least one event",
        ));
    }
    Ok(data)
}

fn variant_arms(index: usize, variant: &Variant, seen: &mut HashSet<String>) -> Result<Arms> {
    let p = quote!(::foldstream::__private);
    let ok = quote!(::core::result::Result::Ok);
    let ident = &variant.ident;
    let VariantOptions { name, version } = VariantOptions::of(variant)?;
    if !seen.insert(name.value()) {
        return Err(Error::new_spanned(
            ident,
            "this stored event name is used twice",
        ));
    }
    let version = version.map_or(quote!(1), |v| quote!(#v));
    let event_type = quote!(::foldstream::EventType::new(#name, #version));
    let payload = match &variant.fields {
        Fields::Named(fields) => Payload::of_struct(variant, fields),
        Fields::Unnamed(fields) if fields.unnamed.len() == 1 => {
            Payload::of_newtype(variant, &fields.unnamed[0])
        }
        Fields::Unit => {
            return Ok(Arms {
                event_type,
                index_of: quote!(Self::#ident => #index),
                encode: quote!(Self::#ident => { ::std::vec::Vec::extend_from_slice(out, b"{}"); #ok(()) }),
                data: quote!(Self::#ident => #p::data_hash(&())),
                decode: quote!(#index => #ok(Self::#ident)),
                deserialize: quote!(#index => #ok(Self::#ident)),
                shadow: payload::skipped(variant),
                items: Tokens::new(),
            });
        }
        Fields::Unnamed(_) => {
            return Err(Error::new_spanned(
                ident,
                "name the fields: a tuple payload cannot gain a field later",
            ));
        }
    };
    let Payload {
        pattern,
        written,
        read,
        fields,
        shadow,
        items,
    } = payload;
    Ok(Arms {
        event_type,
        index_of: quote!(Self::#ident { .. } => #index),
        encode: quote!(#pattern => #p::encode_json(&#written, out)),
        data: quote!(#pattern => #p::data_hash(&#written)),
        decode: quote!(#index => { let #read = #p::decode_json(payload)?; #ok(Self::#ident #fields) }),
        deserialize: quote!(#index => {
            let #read = #p::serde::Deserialize::deserialize(deserializer)?;
            #ok(Self::#ident #fields)
        }),
        shadow,
        items,
    })
}

#[cfg(test)]
mod tests;
