//! The code that writes and reads one variant's payload.
//!
//! A struct variant is written by a serde derive on a shadow of the enum (`#[serde(remote)]`), and
//! read by a derive on a struct with the same fields. The payload therefore has no tag, and serde's
//! attributes on the fields apply as on any struct: their functions get a reference to the field
//! itself.
//!
//! If the type of a field lacks serde, code that serde derives for the field causes several errors
//! in code that the user has not written. Therefore each field is written and read by functions
//! that compile for every type, and one assertion at the field's type says what is missing.
//! `foldstream::__private` has the traits that this needs.
use crate::attributes::is_serde;
use proc_macro2::{Group, TokenStream as Tokens, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{
    Attribute, DataEnum, Field, Fields, FieldsNamed, Ident, LitStr, Result, Type, Variant,
    ext::IdentExt, spanned::Spanned,
};

/// The code for a variant with fields.
pub(crate) struct Payload {
    /// The pattern that binds the fields.
    pub(crate) pattern: Tokens,
    /// A value that serializes the bound fields.
    pub(crate) written: Tokens,
    /// The pattern that binds the fields of what was deserialized.
    pub(crate) read: Tokens,
    /// The body of the variant, made of the bound fields.
    pub(crate) fields: Tokens,
    /// The variant in the shadow of the enum.
    pub(crate) shadow: Tokens,
    /// The items that the other parts use.
    pub(crate) items: Tokens,
}

const SERDE: &str = "::foldstream::__private::serde";

/// The name of the value that serializes a struct variant.
const WRITTEN: &str = "__FoldstreamWritten";

/// Returns the enum with its own name for each `Self` in the types of its fields: in a generated
/// item, `Self` would be that item.
pub(crate) fn without_self(ty: &Ident, data: &DataEnum) -> Result<DataEnum> {
    let mut data = data.clone();
    for field in data.variants.iter_mut().flat_map(|v| &mut v.fields) {
        field.ty = syn::parse2(name_self(ty, field.ty.to_token_stream()))?;
    }
    Ok(data)
}

fn name_self(ty: &Ident, tokens: Tokens) -> Tokens {
    let named = |token| match token {
        TokenTree::Ident(ident) if ident == "Self" => {
            let mut ty = ty.clone();
            ty.set_span(ident.span());
            ty.into()
        }
        TokenTree::Group(group) => {
            let mut named = Group::new(group.delimiter(), name_self(ty, group.stream()));
            named.set_span(group.span());
            named.into()
        }
        token => token,
    };
    tokens.into_iter().map(named).collect()
}

/// Returns the shadow of an enum with struct variants, and a struct that serializes the enum by it.
pub(crate) fn shadow<'a>(
    ty: &Ident,
    data: &DataEnum,
    variants: impl Iterator<Item = &'a Tokens>,
) -> Tokens {
    if !data
        .variants
        .iter()
        .any(|v| matches!(v.fields, Fields::Named(_)))
    {
        return Tokens::new();
    }
    let remote = LitStr::new(&ty.to_string(), ty.span());
    let written = format_ident!("{WRITTEN}");
    quote! {
        #[derive(::foldstream::__private::serde::Serialize)]
        #[serde(crate = #SERDE, remote = #remote, untagged)]
        #[allow(dead_code)]
        enum __FoldstreamShadow { #(#variants),* }
        struct #written<'__a>(&'__a #ty);
        impl ::foldstream::__private::serde::Serialize for #written<'_> {
            fn serialize<__S: ::foldstream::__private::serde::Serializer>(&self, serializer: __S)
                -> ::core::result::Result<__S::Ok, __S::Error> {
                __FoldstreamShadow::serialize(self.0, serializer)
            }
        }
    }
}

/// Returns a variant that the shadow does not write.
pub(crate) fn skipped(variant: &Variant) -> Tokens {
    let ident = &variant.ident;
    let types = variant.fields.iter().map(|f| &f.ty);
    let fields = variant.fields.iter().next().map(|_| quote!((#(#types),*)));
    quote!(#[serde(skip)] #ident #fields)
}

impl Payload {
    pub(crate) fn of_newtype(variant: &Variant, field: &Field) -> Self {
        let ident = &variant.ident;
        let codec = FieldCodec::new(ident, 0, &field.ty);
        let FieldCodec { written, read, .. } = &codec;
        let functions = codec.functions(ident, "the value", Need::Both);
        let (written_item, read_item) = (codec.written_item(), codec.read_item());
        Self {
            pattern: quote!(Self::#ident(body)),
            written: quote!(#written(body)),
            read: quote!(#read(body)),
            fields: quote!((body)),
            shadow: skipped(variant),
            items: quote!(#functions #written_item #read_item),
        }
    }

    pub(crate) fn of_struct(variant: &Variant, fields: &FieldsNamed) -> Self {
        let ident = &variant.ident;
        let read = format_ident!("__FoldstreamRead{}", ident);
        let mut items = Tokens::new();
        let (mut write_fields, mut read_fields) = (Vec::new(), Vec::new());
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        for (index, field) in fields.named.iter().enumerate() {
            let (Some(name), ty) = (&field.ident, &field.ty) else {
                continue;
            };
            let attrs: Vec<_> = field.attrs.iter().filter(|a| is_serde(a)).collect();
            let how = How::of(&attrs);
            names.push(name);
            let codec = FieldCodec::new(ident, index, ty);
            if let Some(need) = how.need() {
                let field = format!("field `{}`", name.unraw());
                items.extend(codec.functions(ident, &field, need));
            }
            let (write_fn, read_fn) = (codec.write_fn(), codec.read_fn());
            write_fields.push(match how.write {
                Write::ByCodec => {
                    quote!(#(#attrs)* #[serde(serialize_with = #write_fn)] #name: #ty)
                }
                Write::AsItIs => quote!(#(#attrs)* #name: #ty),
            });
            let (read_field, pattern) = match how.read {
                Read::AsItIs => (quote!(#(#attrs)* #name: #ty), quote!(#name)),
                // A missing field is not read at all.
                Read::Defaulted => (
                    quote!(#(#attrs)* #[serde(deserialize_with = #read_fn)] #name: #ty),
                    quote!(#name),
                ),
                // A type of its own, so that a missing `Option` is `None`.
                Read::ByCodec => {
                    items.extend(codec.read_item());
                    let read = &codec.read;
                    (quote!(#(#attrs)* #name: #read), quote!(#name: #read(#name)))
                }
            };
            read_fields.push(read_field);
            patterns.push(pattern);
        }
        let shown = ident.unraw().to_string();
        items.extend(quote! {
            #[derive(::foldstream::__private::serde::Deserialize)]
            #[serde(crate = #SERDE, rename = #shown)]
            struct #read { #(#read_fields),* }
        });
        let written = format_ident!("{WRITTEN}");
        Self {
            pattern: quote!(Self::#ident { .. }),
            written: quote!(#written(self)),
            read: quote!(#read { #(#patterns),* }),
            fields: quote!({ #(#names),* }),
            shadow: quote!(#ident { #(#write_fields),* }),
            items,
        }
    }
}

/// The way in which a field of a struct variant is written and read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct How {
    write: Write,
    read: Read,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// The field is written by the function of its [`FieldCodec`].
    ByCodec,
    /// The field is written as its own attributes say.
    AsItIs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// The field is read by the function of its [`FieldCodec`].
    ByCodec,
    /// The field is read by that function, and has a default if it is missing.
    Defaulted,
    /// The field is read as its own attributes say.
    AsItIs,
}

/// The part of serde that the type of a field needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Both,
    Serialize,
    Deserialize,
}

impl How {
    const AS_IT_IS: Self = Self {
        write: Write::AsItIs,
        read: Read::AsItIs,
    };

    fn of(attrs: &[&Attribute]) -> Self {
        let mut how = Self {
            write: Write::ByCodec,
            read: Read::ByCodec,
        };
        for attr in attrs {
            let parsed = attr.parse_nested_meta(|meta| {
                let is = |names: &[&str]| names.iter().any(|name| meta.path.is_ident(name));
                if is(&["default"]) {
                    if how.read == Read::ByCodec {
                        how.read = Read::Defaulted;
                    }
                } else if is(&["serialize_with", "skip_serializing"]) {
                    how.write = Write::AsItIs;
                } else if is(&["deserialize_with", "skip_deserializing"]) {
                    how.read = Read::AsItIs;
                } else if !is(&["rename", "alias", "skip_serializing_if", "flatten"]) {
                    how = Self::AS_IT_IS;
                }
                // serde checks the part after the name.
                if meta.input.peek(syn::Token![=]) {
                    meta.value()?.parse::<syn::Expr>()?;
                } else if meta.input.peek(syn::token::Paren) {
                    let content;
                    syn::parenthesized!(content in meta.input);
                    content.parse::<Tokens>()?;
                }
                Ok(())
            });
            if parsed.is_err() {
                return Self::AS_IT_IS;
            }
        }
        how
    }

    /// Returns the part of serde that the functions of the [`FieldCodec`] need; `None` if neither
    /// of them is called.
    fn need(self) -> Option<Need> {
        match (self.write, self.read) {
            (Write::AsItIs, Read::AsItIs) => None,
            (Write::AsItIs, _) => Some(Need::Deserialize),
            (Write::ByCodec, Read::AsItIs) => Some(Need::Serialize),
            (Write::ByCodec, _) => Some(Need::Both),
        }
    }
}

/// The functions that write and read one field.
struct FieldCodec<'a> {
    ty: &'a Type,
    functions: Ident,
    /// A struct that holds a reference to the field and serializes it.
    written: Ident,
    /// A struct that holds the field and deserializes it.
    read: Ident,
}

impl<'a> FieldCodec<'a> {
    fn new(variant: &Ident, index: usize, ty: &'a Type) -> Self {
        Self {
            ty,
            functions: format_ident!("__FoldstreamField{}Of{}", index, variant),
            written: format_ident!("__FoldstreamWritten{}Of{}", index, variant),
            read: format_ident!("__FoldstreamRead{}Of{}", index, variant),
        }
    }

    fn write_fn(&self) -> String {
        format!("{}::write", self.functions)
    }
    fn read_fn(&self) -> String {
        format!("{}::read", self.functions)
    }

    /// Returns the two functions, and the assertion that the field's type has what they need.
    fn functions(&self, variant: &Ident, shown: &str, need: Need) -> Tokens {
        let Self { ty, functions, .. } = self;
        let p = quote!(::foldstream::__private);
        let serde = quote!(#p::serde);
        let variant = variant.unraw();
        let (has, verb, derive, attribute) = match need {
            Need::Both => (
                quote!(#p::HasSerde),
                "write and read",
                "`serde::Serialize` and `serde::Deserialize`",
                "with",
            ),
            Need::Serialize => (
                quote!(#p::HasSerialize),
                "write",
                "`serde::Serialize`",
                "serialize_with",
            ),
            Need::Deserialize => (
                quote!(#p::HasDeserialize),
                "read",
                "`serde::Deserialize`",
                "deserialize_with",
            ),
        };
        let message = format!(
            "{shown} of event `{variant}` has a type that serde cannot {verb}: derive {derive} for the type, or name \
             your own with `#[serde({attribute} = \"...\")]`"
        );
        let assertion = quote_spanned! {ty.span()=>
            const _: () = {
                #[allow(unused_imports)]
                use #p::NoSerde as _;
                ::core::assert!(<#has<#ty>>::YES, #message)
            };
        };
        quote! {
            #assertion
            struct #functions;
            #[allow(dead_code)]
            impl #functions {
                fn write<__S: #serde::Serializer>(value: &#ty, serializer: __S) -> ::core::result::Result<__S::Ok, __S::Error> {
                    #[allow(unused_imports)]
                    use #p::{WriteAny as _, WriteSerde as _};
                    (&#p::Write(value)).__foldstream_write(serializer)
                }
                fn read<'__de, __D: #serde::Deserializer<'__de>>(deserializer: __D) -> ::core::result::Result<#ty, __D::Error> {
                    #[allow(unused_imports)]
                    use #p::{ReadAny as _, ReadSerde as _};
                    (&#p::Read::<#ty>::NEW).__foldstream_read(deserializer)
                }
            }
        }
    }

    fn written_item(&self) -> Tokens {
        let Self {
            ty,
            functions,
            written,
            ..
        } = self;
        let serde = quote!(::foldstream::__private::serde);
        quote! {
            struct #written<'__a>(&'__a #ty);
            impl #serde::Serialize for #written<'_> {
                fn serialize<__S: #serde::Serializer>(&self, serializer: __S) -> ::core::result::Result<__S::Ok, __S::Error> {
                    #functions::write(self.0, serializer)
                }
            }
        }
    }

    fn read_item(&self) -> Tokens {
        let Self {
            ty,
            functions,
            read,
            ..
        } = self;
        let serde = quote!(::foldstream::__private::serde);
        quote! {
            struct #read(#ty);
            impl<'__de> #serde::Deserialize<'__de> for #read {
                fn deserialize<__D: #serde::Deserializer<'__de>>(deserializer: __D) -> ::core::result::Result<Self, __D::Error> {
                    ::core::result::Result::map(#functions::read(deserializer), Self)
                }
            }
        }
    }
}
