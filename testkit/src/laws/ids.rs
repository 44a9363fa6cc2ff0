//! Ids of the streams that the laws write to: those that the user sets, or those read from common
//! texts.
//!
//! All ids are checked before the first case, so that a type without usable ids is one clear
//! failure and not one per case.
use super::{command::stream_of, seed::Plan, story::short_name};
use foldstream::{Aggregate, DomainEvent, chain};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use std::{
    any::{Any, TypeId},
    collections::BTreeSet,
};

/// Texts that most id types can read, by the number of a stream. A family is used if the type can
/// read all of its texts.
const TEXTS: [fn(usize) -> String; 5] = [
    |n| match u8::try_from(n) {
        Ok(n @ 0..26) => char::from(b'a' + n).to_string(),
        _ => format!("stream-{n}"),
    },
    |n| format!("{}", n + 1),
    |n| format!("00000000-0000-4000-8000-{:012}", n + 1),
    |n| format!("01920000-0000-7000-8000-{:012}", n + 1),
    |n| format!("01J{:023}", n + 1),
];

/// The id that every scenario has. The laws of an aggregate use it too if the id type can read it.
pub(super) const SCENARIO: &str = "scenario";

/// The number of draws from a strategy until enough different ids must have been found.
const DRAWS: usize = 1_000;

/// Draws one id from a user's strategy.
type Draw<I> = Box<dyn Fn(&mut TestRunner) -> Result<I, String>>;

fn draw<I>(strategy: impl Strategy<Value = I> + 'static) -> Draw<I> {
    Box::new(move |runner| match strategy.new_tree(runner) {
        Ok(tree) => Ok(tree.current()),
        Err(reason) => Err(format!("the strategy of ids gives none: {reason}")),
    })
}

/// The strategies of ids, by the type of the ids.
#[derive(Default)]
pub(super) struct Given(Vec<OfType>);

struct OfType {
    id: TypeId,
    name: String,
    draw: Box<dyn Any>,
}

impl Given {
    /// Adds a strategy for its type of ids. A later strategy of the same type replaces an earlier
    /// one.
    pub(super) fn insert<I: 'static>(&mut self, strategy: impl Strategy<Value = I> + 'static) {
        let id = TypeId::of::<I>();
        self.0.retain(|known| known.id != id);
        self.0.push(OfType {
            id,
            name: short_name::<I>(),
            draw: Box::new(draw(strategy)),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names of the id types that are not among these types.
    pub(super) fn unused(&self, types: &[TypeId]) -> Vec<&str> {
        let unused = self.0.iter().filter(|known| !types.contains(&known.id));
        unused.map(|known| &*known.name).collect()
    }

    fn of<I: 'static>(&self) -> Option<&Draw<I>> {
        let known = self.0.iter().find(|known| known.id == TypeId::of::<I>());
        known.and_then(|known| known.draw.downcast_ref())
    }
}

/// Returns ids of at least `streams` different streams of an aggregate type: up to `most` of those
/// that were given, or those of a family of texts.
pub(super) fn of_streams<A: Aggregate>(
    given: &Given,
    plan: Plan,
    streams: usize,
    most: usize,
) -> Result<Vec<A::Id>, String> {
    let Some(draw) = given.of::<A::Id>() else {
        return of_texts::<A>(streams);
    };
    // This runner belongs to the ids alone, so that two strategies of commands on one aggregate get
    // the same ids.
    let mut runner = TestRunner::new(plan.config().0);
    let (mut ids, mut texts) = (Vec::new(), BTreeSet::new());
    for _ in 0..DRAWS {
        let id = draw(&mut runner)?;
        let text = usable::<A>(&id).map_err(|why| {
            format!(
                "an id that was given for {} cannot be used: {why}",
                short_name::<A>()
            )
        })?;
        if texts.insert(text) {
            ids.push(id);
        }
        if ids.len() >= most.max(streams) {
            break;
        }
    }
    if ids.len() < streams {
        return Err(format!(
            "the ids that were given for {} are of {} streams in {DRAWS} draws, and {streams} are needed: {texts:?}. Give a \
             strategy with more different ids, or say how many streams there are with `.with_streams({})`",
            short_name::<A>(),
            ids.len(),
            ids.len()
        ));
    }
    Ok(ids)
}

/// Returns the id of the one stream of an aggregate's laws.
pub(super) fn of_one<A: Aggregate>() -> Result<A::Id, String> {
    match parsed::<A>(SCENARIO) {
        Ok(id) => Ok(id),
        Err(_) => of_texts::<A>(1).map(|mut ids| ids.remove(0)),
    }
}

fn of_texts<A: Aggregate>(streams: usize) -> Result<Vec<A::Id>, String> {
    let mut refused = Vec::new();
    for family in TEXTS {
        let texts: Vec<_> = (0..streams).map(family).collect();
        match family_of::<A>(&texts) {
            Ok(ids) => return Ok(ids),
            Err(why) => refused.push(format!("  {why}")),
        }
    }
    Err(format!(
        "no common texts name {streams} stream{} of {}: give ids of its type with `.with_ids(strategy)`\n{}",
        if streams == 1 { "" } else { "s" },
        short_name::<A>(),
        refused.join("\n")
    ))
}

fn family_of<A: Aggregate>(texts: &[String]) -> Result<Vec<A::Id>, String> {
    let mut shown = BTreeSet::new();
    let mut ids = Vec::new();
    for text in texts {
        let id = parsed::<A>(text)?;
        if !shown.insert(id.to_string()) {
            return Err(format!(
                "{text:?}: it is read as {:?}, as another text was",
                id.to_string()
            ));
        }
        ids.push(id);
    }
    Ok(ids)
}

fn parsed<A: Aggregate>(text: &str) -> Result<A::Id, String> {
    let id = text
        .parse()
        .map_err(|error: <A::Id as std::str::FromStr>::Err| {
            let error: foldstream::BoxError = error.into();
            format!("{text:?}: {}", chain(&*error))
        })?;
    usable::<A>(&id)?;
    Ok(id)
}

/// Returns the text of an id that names a stream and is read back as the same id.
fn usable<A: Aggregate>(id: &A::Id) -> Result<String, String> {
    let text = id.to_string();
    match text.parse::<A::Id>() {
        Ok(id) if id.to_string() == text => {}
        Ok(id) => {
            return Err(format!(
                "{text:?} is read as an id that shows itself as {:?}",
                id.to_string()
            ));
        }
        Err(error) => {
            let error: foldstream::BoxError = error.into();
            return Err(format!(
                "{text:?}, the text of an id, cannot be read: {}",
                chain(&*error)
            ));
        }
    }
    stream_of::<A>(&text).map_err(|why| {
        let aggregate = A::Event::AGGREGATE;
        format!("{text:?} names no stream of {aggregate}: {why}")
    })?;
    Ok(text)
}

/// Returns the index of a stream's id among `ids` ids. It differs per `choice`, and two streams
/// never share one.
pub(super) fn place(choice: u64, ids: usize, stream: usize) -> usize {
    if choice == 0 {
        return stream;
    }
    let mut places: Vec<usize> = (0..ids).collect();
    fastrand::Rng::with_seed(choice).shuffle(&mut places);
    places[stream]
}
