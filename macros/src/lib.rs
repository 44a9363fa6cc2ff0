//! `#[derive(DomainEvent)]`: stored names, schema versions and an untagged payload for every variant of an enum.
//! Re-exported by `foldstream`; use it from there.
use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{format_ident, quote};
use syn::{
    Attribute, Data, DeriveInput, Error, Fields, FieldsNamed, Ident, LitInt, LitStr, Result,
    Variant, parse_macro_input,
};

/// Implements `DomainEvent` for an enum.
///
/// On the enum: `#[event(aggregate = "cart")]`, the stored name of the aggregate type (`[A-Za-z0-9_.-]{1,64}`).
/// On a variant: `#[event(name = "ItemAdded", version = 2)]`, both optional. The stored name defaults to the variant's
/// name and the schema version to 1; renaming a variant without a `name` changes what is stored.
///
/// A variant is a struct (payload: a JSON object of its fields, `#[serde(...)]` on fields counts), a newtype (payload:
/// the inner value as serde writes it) or a unit (payload: `{}`). The payload holds neither name nor version.
#[proc_macro_derive(DomainEvent, attributes(event, serde))]
pub fn domain_event(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput))
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

#[derive(Default)]
struct Options {
    aggregate: Option<LitStr>,
    name: Option<LitStr>,
    version: Option<LitInt>,
}

fn options(attrs: &[Attribute], on_enum: bool) -> Result<Options> {
    let mut found = Options::default();
    for attr in attrs.iter().filter(|a| a.path().is_ident("event")) {
        attr.parse_nested_meta(|meta| {
            if on_enum && meta.path.is_ident("aggregate") {
                found.aggregate = Some(meta.value()?.parse()?);
            } else if !on_enum && meta.path.is_ident("name") {
                found.name = Some(meta.value()?.parse()?);
            } else if !on_enum && meta.path.is_ident("version") {
                found.version = Some(meta.value()?.parse()?);
            } else if on_enum {
                return Err(meta.error("expected `aggregate = \"...\"`"));
            } else {
                return Err(meta.error("expected `name = \"...\"` or `version = N`"));
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn check_aggregate(name: &LitStr) -> Result<()> {
    let text = name.value();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
        return Err(Error::new_spanned(
            name,
            "an aggregate type is 1 to 64 characters of A-Z a-z 0-9 _ . -",
        ));
    }
    Ok(())
}

/// What one variant adds to the generated methods.
struct Arms {
    event_type: Tokens,
    index_of: Tokens,
    encode: Tokens,
    decode: Tokens,
    deserialize: Tokens,
    /// Types that the arms use.
    shadow: Tokens,
}

fn expand(input: &DeriveInput) -> Result<Tokens> {
    let ty = &input.ident;
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(
            ty,
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
            ty,
            "an aggregate needs at least one event",
        ));
    }
    let Some(aggregate) = options(&input.attrs, true)?.aggregate else {
        return Err(Error::new_spanned(
            ty,
            "add `#[event(aggregate = \"...\")]`: the stored name of the streams that hold these events",
        ));
    };
    check_aggregate(&aggregate)?;
    let mut seen = std::collections::HashSet::new();
    let mut arms = Vec::with_capacity(data.variants.len());
    for (index, variant) in data.variants.iter().enumerate() {
        arms.push(variant_arms(index, variant, &mut seen)?);
    }
    let types = arms.iter().map(|a| &a.event_type);
    let index_of = arms.iter().map(|a| &a.index_of);
    let encode = arms.iter().map(|a| &a.encode);
    let decode = arms.iter().map(|a| &a.decode);
    let deserialize = arms.iter().map(|a| &a.deserialize);
    let shadows = arms.iter().map(|a| &a.shadow);
    let serde = quote!(::foldstream::__private::serde);
    Ok(quote! { const _: () = {
        #(#shadows)*
        #[automatically_derived]
        impl ::foldstream::DomainEvent for #ty {
            const AGGREGATE: &'static str = #aggregate;
            const TYPES: &'static [::foldstream::EventType] = &[#(#types),*];
            fn type_index(&self) -> usize { match self { #(#index_of),* } }
            fn encode(&self, out: &mut ::std::vec::Vec<u8>) -> ::core::result::Result<(), ::foldstream::CodecError> {
                match self { #(#encode),* }
            }
            fn decode(type_index: usize, payload: &[u8]) -> ::core::result::Result<Self, ::foldstream::CodecError> {
                match type_index { #(#decode,)* other => Err(::foldstream::__private::bad_index(other)) }
            }
        }
        #[automatically_derived]
        impl ::foldstream::DeserializePayload for #ty {
            fn deserialize_payload<'de, D: #serde::Deserializer<'de>>(type_index: usize, deserializer: D)
                -> ::core::result::Result<Self, D::Error> {
                match type_index {
                    #(#deserialize,)*
                    other => Err(#serde::de::Error::custom(::foldstream::__private::bad_index(other))),
                }
            }
        }
    }; })
}

fn variant_arms(
    index: usize,
    variant: &Variant,
    seen: &mut std::collections::HashSet<String>,
) -> Result<Arms> {
    let p = quote!(::foldstream::__private);
    let ident = &variant.ident;
    let options = options(&variant.attrs, false)?;
    let name = options
        .name
        .unwrap_or_else(|| LitStr::new(&ident.to_string(), ident.span()));
    if name.value().is_empty() {
        return Err(Error::new_spanned(name, "a stored event name is not empty"));
    }
    let is_forbidden = |c: char| {
        let code = u32::from(c);
        c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
    };
    if let Some(found) = name.value().chars().find(|c| is_forbidden(*c)) {
        let code = u32::from(found);
        return Err(Error::new_spanned(
            name,
            format!("a stored event name must not hold the character U+{code:04X}"),
        ));
    }
    if !seen.insert(name.value()) {
        return Err(Error::new_spanned(
            ident,
            "this stored event name is used twice",
        ));
    }
    if let Some(version) = &options.version
        && !matches!(version.base10_parse::<u16>(), Ok(1..))
    {
        return Err(Error::new_spanned(
            version,
            "a schema version is a number from 1 to 65535",
        ));
    }
    let version = options.version.map_or(quote!(1), |v| quote!(#v));
    let event_type = quote!(::foldstream::EventType::new(#name, #version));
    match &variant.fields {
        Fields::Named(fields) => Ok(struct_arms(index, ident, fields, event_type)),
        Fields::Unnamed(fields) if fields.unnamed.len() == 1 => Ok(Arms {
            event_type,
            index_of: quote!(Self::#ident(..) => #index),
            encode: quote!(Self::#ident(body) => #p::encode_json(body, out)),
            decode: quote!(#index => Ok(Self::#ident(#p::decode_json(payload)?))),
            deserialize: quote!(#index => Ok(Self::#ident(#p::serde::Deserialize::deserialize(deserializer)?))),
            shadow: Tokens::new(),
        }),
        Fields::Unit => Ok(Arms {
            event_type,
            index_of: quote!(Self::#ident => #index),
            encode: quote!(Self::#ident => { out.extend_from_slice(b"{}"); Ok(()) }),
            decode: quote!(#index => Ok(Self::#ident)),
            deserialize: quote!(#index => Ok(Self::#ident)),
            shadow: Tokens::new(),
        }),
        Fields::Unnamed(_) => Err(Error::new_spanned(
            ident,
            "name the fields: a tuple payload cannot gain a field later",
        )),
    }
}

/// A struct variant goes through shadow structs, so that the payload has no tag and serde's field attributes count.
fn struct_arms(index: usize, ident: &Ident, fields: &FieldsNamed, event_type: Tokens) -> Arms {
    let p = quote!(::foldstream::__private);
    let serde = "::foldstream::__private::serde";
    let names: Vec<_> = fields.named.iter().map(|f| &f.ident).collect();
    let types: Vec<_> = fields.named.iter().map(|f| &f.ty).collect();
    let attrs: Vec<Vec<_>> = fields
        .named
        .iter()
        .map(|f| {
            f.attrs
                .iter()
                .filter(|a| a.path().is_ident("serde"))
                .collect()
        })
        .collect();
    // Names that no type of the user has, and the variant's own in messages.
    let (written, read) = (
        format_ident!("__FoldstreamWritten{}", ident),
        format_ident!("__FoldstreamRead{}", ident),
    );
    let shown = ident.to_string();
    let shadow = quote! {
        #[derive(#p::serde::Serialize)] #[serde(crate = #serde)]
        struct #written<'a> { #(#(#attrs)* #names: &'a #types,)* #[serde(skip)] _borrow: ::core::marker::PhantomData<&'a ()> }
        #[derive(#p::serde::Deserialize)] #[serde(crate = #serde, rename = #shown)]
        struct #read { #(#(#attrs)* #names: #types),* }
    };
    Arms {
        event_type,
        index_of: quote!(Self::#ident { .. } => #index),
        encode: quote!(Self::#ident { #(#names),* } => {
            #p::encode_json(&#written { #(#names,)* _borrow: ::core::marker::PhantomData }, out)
        }),
        decode: quote!(#index => {
            let #read { #(#names),* } = #p::decode_json(payload)?;
            Ok(Self::#ident { #(#names),* })
        }),
        deserialize: quote!(#index => {
            let #read { #(#names),* } = #p::serde::Deserialize::deserialize(deserializer)?;
            Ok(Self::#ident { #(#names),* })
        }),
        shadow,
    }
}
