//! The attributes of an event enum, of its variants and of their fields.
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::{
    Attribute, DataEnum, DeriveInput, Error, Field, Fields, LitInt, LitStr, Meta, Path, Result,
    Variant, ext::IdentExt, meta::ParseNestedMeta, parse::ParseStream,
};

/// The options in `#[event(...)]` on the enum.
pub(crate) struct EnumOptions {
    pub(crate) aggregate: LitStr,
    pub(crate) upcasters: Option<Path>,
}

/// The options in `#[event(...)]` on a variant.
pub(crate) struct VariantOptions {
    pub(crate) name: LitStr,
    pub(crate) version: Option<LitInt>,
}

/// Sets an option that must not be set yet.
fn set<T>(option: &mut Option<T>, meta: &ParseNestedMeta<'_>, value: T) -> Result<()> {
    match option.replace(value) {
        None => Ok(()),
        Some(_) => Err(meta.error("this is given twice")),
    }
}

fn event_attributes(attrs: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attrs.iter().filter(|a| a.path().is_ident("event"))
}

impl EnumOptions {
    pub(crate) fn of(input: &DeriveInput) -> Result<Self> {
        let (mut aggregate, mut upcasters) = (None, None);
        for attr in event_attributes(&input.attrs) {
            attr.parse_nested_meta(|meta| {
                if meta.path.is_ident("aggregate") {
                    let value = meta.value()?.parse()?;
                    set(&mut aggregate, &meta, value)
                } else if meta.path.is_ident("upcasters") {
                    let value = path_of_function(meta.value()?)?;
                    set(&mut upcasters, &meta, value)
                } else {
                    Err(meta.error("expected `aggregate = \"...\"` or `upcasters = path`"))
                }
            })?;
        }
        let Some(aggregate) = aggregate else {
            return Err(Error::new_spanned(
                &input.ident,
                "add `#[event(aggregate = \"...\")]`: the stored name of the streams that hold these events",
            ));
        };
        check_aggregate(&aggregate)?;
        Ok(Self {
            aggregate,
            upcasters,
        })
    }
}

/// Parses the path after `upcasters =`.
fn path_of_function(value: ParseStream<'_>) -> Result<Path> {
    if value.peek(LitStr) {
        let text: LitStr = value.parse()?;
        let why = match text.parse::<Path>() {
            Ok(_) => format!(
                "the path of a function, without quotes: `upcasters = {}`",
                text.value()
            ),
            Err(_) => "expected the path of a function: `upcasters = path`".into(),
        };
        return Err(Error::new_spanned(text, why));
    }
    value.parse()
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

impl VariantOptions {
    pub(crate) fn of(variant: &Variant) -> Result<Self> {
        let (mut name, mut version) = (None, None);
        for attr in event_attributes(&variant.attrs) {
            attr.parse_nested_meta(|meta| {
                if meta.path.is_ident("name") {
                    let value = meta.value()?.parse()?;
                    set(&mut name, &meta, value)
                } else if meta.path.is_ident("version") {
                    let value = meta.value()?.parse()?;
                    set(&mut version, &meta, value)
                } else {
                    Err(meta.error("expected `name = \"...\"` or `version = N`"))
                }
            })?;
        }
        let ident = &variant.ident;
        let name = name.unwrap_or_else(|| LitStr::new(&ident.unraw().to_string(), ident.span()));
        check_name(&name)?;
        if let Some(version) = &version
            && !matches!(LitInt::base10_parse::<u16>(version), Ok(1..))
        {
            return Err(Error::new_spanned(
                version,
                "a schema version is a number from 1 to 65535",
            ));
        }
        Ok(Self { name, version })
    }
}

/// Refuses a name that `Append::validate` would refuse.
fn check_name(name: &LitStr) -> Result<()> {
    let text = name.value();
    let why = if text.is_empty() {
        "a stored event name is not empty".into()
    } else if let Some(found) = text.chars().find(|c| is_forbidden(*c)) {
        let code = u32::from(found);
        format!(
            "a stored event name has no control characters and no noncharacters: leave out U+{code:04X}"
        )
    } else {
        return Ok(());
    };
    Err(Error::new_spanned(name, why))
}

/// Returns true for a control character or a Unicode noncharacter, as `forbidden_char` of
/// `foldstream` does.
fn is_forbidden(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || matches!(code, 0xFDD0..=0xFDEF) || code & 0xFFFE == 0xFFFE
}

/// Returns attributes that allow, in generated code, the lints that the user allows or expects,
/// since generated code repeats names and types of the enum. They also allow the use of what the
/// user has marked deprecated.
///
/// A lint that the user expects occurs in the user's code, so it is only allowed here.
pub(crate) fn allowed_lints(input: &DeriveInput, data: &DataEnum) -> Tokens {
    let mut allowed = Tokens::new();
    for attr in attributes_of(input, data) {
        match &attr.meta {
            Meta::List(list) if list.path.is_ident("allow") || list.path.is_ident("expect") => {
                let lints = &list.tokens;
                allowed.extend(quote!(#[allow(#lints)]));
            }
            meta if meta.path().is_ident("deprecated") => {
                allowed.extend(quote!(#[allow(deprecated)]));
            }
            _ => {}
        }
    }
    allowed
}

/// Returns the attributes of the enum, of its variants and of their fields.
fn attributes_of<'a>(
    input: &'a DeriveInput,
    data: &'a DataEnum,
) -> impl Iterator<Item = &'a Attribute> {
    let of_variants = data.variants.iter().flat_map(|variant| {
        let of_fields = variant.fields.iter().flat_map(|field| &field.attrs);
        variant.attrs.iter().chain(of_fields)
    });
    input.attrs.iter().chain(of_variants)
}

pub(crate) fn is_serde(attr: &Attribute) -> bool {
    attr.path().is_ident("serde")
}

/// Refuses every attribute that would have no effect on what is stored. All of them are reported at
/// once, each at its place.
pub(crate) fn check_serde(input: &DeriveInput, data: &DataEnum) -> Result<()> {
    let mut found: Vec<Error> = Vec::new();
    let mut refuse = |attrs: &[Attribute], why: &str| {
        let useless = attrs.iter().filter(|a| is_serde(a));
        found.extend(useless.map(|attr| Error::new_spanned(attr, why)));
    };
    refuse(
        &input.attrs,
        "no effect on what is stored, which has neither tag nor variant: put it on the fields, or on the type of a newtype variant",
    );
    for variant in &data.variants {
        refuse(
            &variant.attrs,
            "no effect on what is stored: the stored name is `#[event(name = \"...\")]`, and attributes of serde belong on the fields",
        );
        if let Fields::Unnamed(fields) = &variant.fields {
            for field in &fields.unnamed {
                refuse(
                    &field.attrs,
                    "no effect on what is stored: the payload is the value itself. Name the field, or put this on the field's type",
                );
            }
        }
    }
    let fields = data.variants.iter().flat_map(|v| &v.fields);
    for attr in fields.flat_map(|f: &Field| event_attributes(&f.attrs)) {
        let why = "`#[event(...)]` belongs on the enum and its variants: a field is renamed with `#[serde(rename = \"...\")]`";
        found.push(Error::new_spanned(attr, why));
    }
    let all = found.into_iter().reduce(|mut all, error| {
        all.combine(error);
        all
    });
    all.map_or(Ok(()), Err)
}
