//! A deserializer without data. It records what a type asks for and makes up the answers.
use super::{
    shape::{Node, Nodes, Path},
    trace::{Plan, Untraceable},
};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use std::{any::type_name, cell::RefCell, fmt};

const NUMBERS: &[u8] = &[0, 1, 2, 7, 12, 100];
/// The greatest depth of containers within containers. A deeper type is taken for one without an
/// end.
const DEPTH: usize = 64;

/// The record of one run of a type's `Deserialize`.
pub(super) struct Run<'t> {
    pub(super) plan: Plan,
    pub(super) texts: &'t [&'t str],
    pub(super) nodes: Nodes,
    /// The place of the value that was given last, with its number of candidates.
    pub(super) last: Option<(Path, usize)>,
    pub(super) last_field: Option<Path>,
    /// The types that are being read, by the names of their visitors, each with its number of
    /// variants.
    pub(super) open: Vec<(&'static str, usize)>,
    pub(super) duplicate: bool,
    pub(super) endless: Option<(&'static str, usize)>,
    pub(super) verdict: Option<Untraceable>,
}

/// The reason for which a run ended early, and whether it is a field that came twice.
#[derive(Debug)]
pub(super) struct Fail(String, bool);
impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Fail {}
impl de::Error for Fail {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string(), false)
    }
    fn duplicate_field(field: &'static str) -> Self {
        Self(format!("duplicate field `{field}`"), true)
    }
}

/// A place in the payload, at which a type deserializes.
#[derive(Clone)]
pub(super) struct At<'r, 't> {
    run: &'r RefCell<Run<'t>>,
    path: Path,
    /// Set within a type that is already recorded: nothing is recorded there again.
    is_again: bool,
    is_key: bool,
}

impl<'r, 't> At<'r, 't> {
    pub(super) fn root(run: &'r RefCell<Run<'t>>) -> Self {
        Self {
            run,
            path: Path::default(),
            is_again: false,
            is_key: false,
        }
    }

    fn child(&self, step: impl Into<String>) -> Self {
        let mut child = self.clone();
        child.path.push(step.into());
        child.is_key = false;
        child
    }

    fn record(&self, node: Node) -> Result<(), Fail> {
        if self.is_again {
            return Ok(());
        }
        let clash = self.run.borrow_mut().nodes.record(&self.path, node);
        clash.map_err(|clash| self.give_up(clash.reason))
    }

    fn give_up(&self, reason: impl Into<String>) -> Fail {
        let reason = reason.into();
        let verdict = Untraceable {
            path: self.path.clone(),
            reason: reason.clone(),
        };
        self.run.borrow_mut().verdict.get_or_insert(verdict);
        Fail(reason, false)
    }

    /// Returns the candidate for this value.
    fn pick<T: Copy>(&self, kind: &'static str, candidates: &[T]) -> Result<T, Fail> {
        self.record(Node::Leaf(kind))?;
        let mut run = self.run.borrow_mut();
        run.last = Some((self.path.clone(), candidates.len()));
        let at = run.plan.candidates.get(&self.path).copied().unwrap_or(0);
        let at = at.min(candidates.len() - 1);
        Ok(candidates[at])
    }

    fn text(&self) -> Result<&'t str, Fail> {
        let texts = self.run.borrow().texts;
        self.pick("text", texts)
    }

    fn number<T: From<u8>>(&self, kind: &'static str) -> Result<T, Fail> {
        Ok(self.pick(kind, NUMBERS)?.into())
    }

    /// Reads a type that may contain itself. `node` describes the type.
    fn within<T>(
        mut self,
        name: &'static str,
        node: Node,
        variants: usize,
        read: impl FnOnce(Self) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        let open = self.run.borrow().open.iter().rposition(|(o, _)| *o == name);
        let depth = self.run.borrow().open.len();
        match open {
            Some(at) if !self.is_again => {
                self.record(Node::Again(depth - at))?;
                self.is_again = true;
            }
            _ => self.record(node)?,
        }
        if depth >= DEPTH {
            let mut run = self.run.borrow_mut();
            // Only another variant of an enum can end a type that contains itself.
            let choice = run.open.iter().rfind(|(_, variants)| *variants > 1);
            let culprit = choice.copied().unwrap_or((name, variants));
            run.endless.get_or_insert(culprit);
            return Err(Fail("too deep".into(), false));
        }
        let run = self.run;
        run.borrow_mut().open.push((name, variants));
        let read = read(self);
        run.borrow_mut().open.pop();
        if let Err(Fail(_, true)) = &read {
            run.borrow_mut().duplicate = true;
        }
        read
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $kind:literal,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
            visitor.$visit(self.number($kind)?)
        })*
    };
}

impl<'de> Deserializer<'de> for At<'_, '_> {
    type Error = Fail;

    numbers! {
        deserialize_u8 visit_u8 "u8",
        deserialize_u16 visit_u16 "u16",
        deserialize_u32 visit_u32 "u32",
        deserialize_u64 visit_u64 "u64",
        deserialize_u128 visit_u128 "u128",
        deserialize_i16 visit_i16 "i16",
        deserialize_i32 visit_i32 "i32",
        deserialize_i64 visit_i64 "i64",
        deserialize_i128 visit_i128 "i128",
        deserialize_f32 visit_f32 "f32",
        deserialize_f64 visit_f64 "f64",
    }
    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        visitor.visit_i8(self.pick("i8", &[0, 1, 2, 7, 12, 100])?)
    }
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        visitor.visit_bool(self.pick("bool", &[false, true])?)
    }
    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        visitor.visit_char(self.pick("char", &['a', 'A', '0'])?)
    }
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        visitor.visit_str(self.text()?)
    }
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        visitor.visit_str(self.text()?)
    }
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        let lengths = [0, 1, 4, 8, 12, 16, 20, 24, 32, 64];
        let length = self.pick("bytes", &lengths)?;
        visitor.visit_byte_buf(vec![0; length])
    }
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.deserialize_bytes(visitor)
    }
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.record(Node::Leaf("null"))?;
        visitor.visit_unit()
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fail> {
        self.deserialize_unit(visitor)
    }
    /// Fails in any case: the type looks at the data to know what it is, and there is no data here.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        match self.pick(Node::ANY, &[0u8, 1, 2, 3, 4])? {
            0 => visitor.visit_unit(),
            1 => visitor.visit_str("0"),
            2 => visitor.visit_u64(0),
            3 => visitor.visit_str(""),
            _ => visitor.visit_bool(false),
        }
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        visitor.visit_unit()
    }
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        if self.is_key {
            let map = Self {
                path: self.path.parent(),
                ..self
            };
            return Err(map.give_up("a flattened struct does not say which fields it reads"));
        }
        self.deserialize_str(visitor)
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.record(Node::Option)?;
        match self.is_again {
            true => visitor.visit_none(),
            false => visitor.visit_some(self.child("?")),
        }
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fail> {
        let child = self.child("");
        self.within(type_name::<V>(), Node::Same, 0, |this| {
            visitor.visit_newtype_struct(At {
                is_again: this.is_again,
                ..child
            })
        })
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.record(Node::Seq)?;
        let left = if self.is_again { 0 } else { 1 };
        visitor.visit_seq(Items {
            steps: (0..left).map(|_| "[]".to_owned()).collect(),
            at: self,
        })
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fail> {
        self.record(Node::Tuple(len))?;
        visitor.visit_seq(Items {
            steps: (0..len).rev().map(|n| n.to_string()).collect(),
            at: self,
        })
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Fail> {
        self.within(type_name::<V>(), Node::Tuple(len), 0, |this| {
            this.deserialize_tuple(len, visitor)
        })
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.record(Node::Map)?;
        let left = !self.is_again;
        visitor.visit_map(Entries { at: self, left })
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        let node = self.struct_node(fields);
        self.within(type_name::<V>(), node, 0, |this| {
            visitor.visit_map(this.fields(fields))
        })
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        let name = type_name::<V>();
        self.within(
            name,
            Node::Enum(variants.to_vec()),
            variants.len(),
            |this| {
                if variants.is_empty() {
                    return Err(this.give_up("an enum without variants has no value"));
                }
                let chosen = {
                    let plan = &this.run.borrow().plan;
                    match this.is_again {
                        true => plan.inner.get(name).copied(),
                        false => plan.variants.get(&this.path).copied(),
                    }
                };
                let variant = variants[chosen.unwrap_or(0).min(variants.len() - 1)];
                visitor.visit_enum(Chosen { at: this, variant })
            },
        )
    }
}

impl<'r, 't> At<'r, 't> {
    fn struct_node(&self, fields: &[&'static str]) -> Node {
        let run = self.run.borrow();
        let is_alias = |field: &str| run.plan.aliases.contains(&self.path.child(field));
        let own = fields.iter().copied().filter(|field| !is_alias(field));
        Node::Struct(own.collect())
    }
    fn fields(self, fields: &[&'static str]) -> Fields<'r, 't> {
        let skipped = |field: &str| {
            let (path, run) = (self.path.child(field), self.run.borrow());
            run.plan.aliases.contains(&path) || run.plan.omitted.as_ref() == Some(&path)
        };
        let left = fields.iter().copied().rev().filter(|field| !skipped(field));
        Fields {
            left: left.collect(),
            at: self,
            next: None,
        }
    }
}

struct Items<'r, 't> {
    at: At<'r, 't>,
    steps: Vec<String>,
}
impl<'de> de::SeqAccess<'de> for Items<'_, '_> {
    type Error = Fail;
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fail> {
        let step = self.steps.pop();
        step.map(|step| seed.deserialize(self.at.child(step)))
            .transpose()
    }
}

struct Entries<'r, 't> {
    at: At<'r, 't>,
    left: bool,
}
impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = Fail;
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fail> {
        if !std::mem::take(&mut self.left) {
            return Ok(None);
        }
        let key = At {
            is_key: true,
            ..self.at.child("key")
        };
        seed.deserialize(key).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fail> {
        seed.deserialize(self.at.child("{}"))
    }
}

struct Fields<'r, 't> {
    at: At<'r, 't>,
    left: Vec<&'static str>,
    next: Option<&'static str>,
}
impl<'de> de::MapAccess<'de> for Fields<'_, '_> {
    type Error = Fail;
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fail> {
        self.next = self.left.pop();
        let Some(field) = self.next else {
            return Ok(None);
        };
        let path = self.at.path.child(field);
        self.at.run.borrow_mut().last_field = Some(path);
        let key: de::value::StrDeserializer<'_, Fail> = field.into_deserializer();
        seed.deserialize(key).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fail> {
        let field = self.next.take();
        seed.deserialize(self.at.child(field.unwrap_or_default()))
    }
}

struct Chosen<'r, 't> {
    at: At<'r, 't>,
    variant: &'static str,
}
impl<'de, 'r, 't> de::EnumAccess<'de> for Chosen<'r, 't> {
    type Error = Fail;
    type Variant = At<'r, 't>;
    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), Fail> {
        let name: de::value::StrDeserializer<'_, Fail> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, self.at.child(self.variant)))
    }
}
impl<'de> de::VariantAccess<'de> for At<'_, '_> {
    type Error = Fail;
    fn unit_variant(self) -> Result<(), Fail> {
        self.record(Node::Nothing)
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fail> {
        seed.deserialize(self)
    }
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fail> {
        self.deserialize_tuple(len, visitor)
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        self.record(self.struct_node(fields))?;
        visitor.visit_map(self.fields(fields))
    }
}
