//! The ids of the laws' streams: made or given, distinct, and checked before the first case.
use super::failure;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, StreamId, Version,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, Projector},
};
use foldstream_testkit::{
    Scenario,
    laws::{Laws, ProjectorLaws},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt,
    marker::PhantomData,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A rule that reads an id from a text.
trait Rule: Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
    fn read(text: &str) -> Option<String>;
}
macro_rules! rules {
    ($($name:ident: |$text:ident| $read:expr;)*) => {
        $(
            #[derive(Clone, Debug, PartialEq)]
            struct $name;
            impl Rule for $name {
                fn read($text: &str) -> Option<String> { $read }
            }
        )*
    };
}
rules! {
    Uuid: |text| (text.len() == 36 && text.split('-').count() == 5).then(|| text.into());
    Ulid: |text| (text.len() == 26 && text.chars().all(|c| c.is_ascii_alphanumeric())).then(|| text.into());
    Number: |text| text.parse::<u64>().ok().map(|n| n.to_string());
    Prefixed: |text| text.starts_with("cart_").then(|| text.into());
    Shifting: |text| text.starts_with("shift-").then(|| text.to_uppercase());
    Region: |text| Some(if text == "us" { "us" } else { "eu" }.into());
}

#[derive(Clone, Debug, PartialEq)]
struct Id<R>(String, PhantomData<R>);
fn id<R>(text: impl Into<String>) -> Id<R> {
    Id(text.into(), PhantomData)
}
impl<R> fmt::Display for Id<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl<R: Rule> FromStr for Id<R> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        R::read(text).map(id).ok_or_else(|| "no such id".into())
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "counter")]
enum CounterEvent {
    Added { n: u64 },
}
use CounterEvent::Added;

#[derive(Clone, Debug, PartialEq)]
struct Counter<R>(u64, PhantomData<R>);
impl<R> Default for Counter<R> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}
impl<R: Rule> Aggregate for Counter<R> {
    type Id = Id<R>;
    type Event = CounterEvent;
    fn evolve(&mut self, Added { n }: &CounterEvent) {
        self.0 += n;
    }
}
#[derive(Clone, Debug)]
struct Add(u64);
impl<R: Rule> Decide<Add> for Counter<R> {
    type Error = Infallible;
    fn decide(&self, command: &Add, ctx: &Context) -> Decision<Self, Infallible> {
        // Every id that a law makes is readable by the aggregate.
        let own: Id<R> = ctx.id().expect("the id can be read");
        assert_eq!(own.to_string(), ctx.stream().id());
        Ok(vec![Added { n: command.0 }])
    }
}
/// The same command as another type.
#[derive(Clone, Debug)]
struct AddOne;
impl<R: Rule> Decide<AddOne> for Counter<R> {
    type Error = Infallible;
    fn decide(&self, _: &AddOne, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![Added { n: 1 }])
    }
}

type Rows = BTreeMap<String, (u64, Version)>;

/// A model of sums that records its streams.
#[derive(Clone, Default)]
struct Sums {
    rows: Arc<Mutex<Rows>>,
    seen: Arc<Mutex<Vec<BTreeSet<String>>>>,
}
impl Projector for Sums {
    const NAME: &'static str = "sums";
    type Events = CounterEvent;
    async fn project(&self, Added { n }: &CounterEvent, ctx: &EventContext) -> HandlerResult {
        let mut rows = self.rows.lock().unwrap();
        let row = rows.entry(ctx.stream().id().into()).or_default();
        if ctx.version() > row.1 {
            *row = (row.0 + n, ctx.version());
        }
        self.seen
            .lock()
            .unwrap()
            .push(rows.keys().cloned().collect());
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.rows.lock().unwrap().clear();
        Ok(())
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let row = self.rows.lock().unwrap().get(stream.id()).copied();
        Ok(Position::stored(row.map_or(Version::NONE, |row| row.1)))
    }
}

type SumsLaws = ProjectorLaws<Sums, Sums, Rows>;

/// Laws of sums, and the sets of streams that models held while they ran.
struct Watched {
    laws: SumsLaws,
    seen: Arc<Mutex<Vec<BTreeSet<String>>>>,
}
fn watched() -> Watched {
    let seen = Arc::<Mutex<Vec<BTreeSet<String>>>>::default();
    let shared = seen.clone();
    let model = move || Sums {
        seen: shared.clone(),
        ..Sums::default()
    };
    let rows = async |sums: &Sums| sums.rows.lock().unwrap().clone();
    let laws = ProjectorLaws::new(model, Sums::clone, rows)
        .with_seed(1)
        .with_cases(64);
    Watched { laws, seen }
}
impl Watched {
    fn map(self, change: impl FnOnce(SumsLaws) -> SumsLaws) -> Self {
        let laws = change(self.laws);
        Self { laws, ..self }
    }
    fn of<R: Rule>(self) -> Self {
        self.map(|laws| laws.with_histories::<Counter<R>, _>(1, (1u64..9).prop_map(Add)))
    }
    /// Returns the largest number of streams in one model, and all streams of all models.
    fn check(self) -> (usize, BTreeSet<String>) {
        self.laws.check();
        let seen = self.seen.lock().unwrap();
        let most = seen.iter().map(BTreeSet::len).max();
        (
            most.unwrap_or_default(),
            seen.iter().flatten().cloned().collect(),
        )
    }
}

#[test]
fn three_streams_are_three_whatever_ids_look_like() {
    assert_eq!(watched().of::<Uuid>().check().0, 3, "UUIDs");
    assert_eq!(watched().of::<Ulid>().check().0, 3, "ULIDs");
    assert_eq!(watched().of::<Number>().check().0, 3, "numbers");
}

#[test]
fn two_kinds_of_commands_on_one_aggregate_go_to_the_same_streams() {
    let both = watched()
        .of::<Prefixed>()
        .map(|laws| laws.with_histories::<Counter<Prefixed>, _>(1, Just(AddOne)))
        .map(|laws| laws.with_ids("cart_[a-z]{6}".prop_map(id::<Prefixed>)));
    assert_eq!(both.check().0, 3);
}

#[test]
fn given_ids_are_those_of_the_streams_and_vary_between_cases() {
    let laws = watched().of::<Prefixed>();
    let laws = laws.map(|laws| laws.with_ids("cart_[a-z]{6}".prop_map(id::<Prefixed>)));
    let (most, all) = laws.check();
    assert_eq!(most, 3);
    assert!(all.len() > 3, "{all:?}");
    assert!(all.iter().all(|id| id.starts_with("cart_")), "{all:?}");
}

#[test]
fn the_number_of_streams_can_be_set() {
    for streams in [1, 2, 5] {
        let laws = watched()
            .of::<Number>()
            .map(|laws| laws.with_streams(streams));
        assert_eq!(laws.check().0, usize::from(streams));
    }
    assert!(failure(|| watched().laws.with_streams(0)).contains("say at least `.with_streams(1)`"));
}

/// Runs laws that must fail before proptest makes a case.
fn failure_before_any_case<R: Rule>(change: impl FnOnce(SumsLaws) -> SumsLaws) -> String {
    let drawn = Arc::new(AtomicUsize::new(0));
    let counted = drawn.clone();
    let commands = (1u64..9).prop_map(move |n| {
        counted.fetch_add(1, Ordering::SeqCst);
        Add(n)
    });
    let Watched { laws, .. } = watched();
    let laws = change(laws.with_histories::<Counter<R>, _>(1, commands));
    let text = failure(|| laws.check());
    assert_eq!(drawn.load(Ordering::SeqCst), 0, "a case was made: {text}");
    assert!(!text.contains("minimal failing input"), "{text}");
    text
}

#[test]
fn ids_that_cannot_be_made_are_a_failure_before_the_first_case() {
    let text = failure_before_any_case::<Prefixed>(|laws| laws);
    let beginning = "no common texts name 3 streams of Counter<Prefixed>: give ids of its type with `.with_ids(strategy)`";
    assert!(text.starts_with(beginning), "{text}");
    assert!(text.contains("\"a\": no such id"), "{text}");
    // Three texts that are read as the same id are not three streams.
    let text = failure_before_any_case::<Region>(|laws| laws);
    assert!(text.starts_with("no common texts name 3 streams"), "{text}");
    assert!(
        text.contains("it is read as \"eu\", as another text was"),
        "{text}"
    );
}

#[test]
fn given_ids_that_are_not_different_enough_are_a_failure_before_the_first_case() {
    let regions = prop_oneof![Just(id::<Region>("eu")), Just(id("us"))];
    let text = failure_before_any_case::<Region>(|laws| laws.with_ids(regions.clone()));
    assert!(
        text.starts_with("the ids that were given for Counter<Region> are of 2 streams in 1000 draws, and 3 are needed"),
        "{text}"
    );
    let (most, all) = watched()
        .of::<Region>()
        .map(|laws| laws.with_ids(regions).with_streams(2))
        .check();
    assert_eq!((most, all.len()), (2, 2));
}

#[test]
fn given_ids_that_are_not_read_back_are_a_failure_before_the_first_case() {
    let given =
        |text: &'static str| move |laws: SumsLaws| laws.with_ids(Just(id::<Prefixed>(text)));
    let text = failure_before_any_case::<Prefixed>(given("basket_1"));
    assert_eq!(
        text,
        "an id that was given for Counter<Prefixed> cannot be used: \"basket_1\", the text of an id, cannot be read: no such id"
    );
    let text = failure_before_any_case::<Prefixed>(given("cart_\n"));
    assert!(text.contains("names no stream of counter"), "{text}");
    let shifting = |laws: SumsLaws| laws.with_ids(Just(id::<Shifting>("shift-a")));
    let text = failure_before_any_case::<Shifting>(shifting);
    assert!(
        text.contains("\"shift-a\" is read as an id that shows itself as \"SHIFT-A\""),
        "{text}"
    );
}

#[test]
fn a_strategy_that_gives_no_id_or_ids_of_another_type_is_a_failure_before_the_first_case() {
    let none = "cart_[a-z]"
        .prop_filter("never", |_| false)
        .prop_map(id::<Prefixed>);
    let text = failure_before_any_case::<Prefixed>(|laws| laws.with_ids(none));
    assert!(text.starts_with("the strategy of ids gives none"), "{text}");
    let text = failure_before_any_case::<Number>(|laws| {
        laws.with_ids("cart_[a-z]".prop_map(id::<Prefixed>))
    });
    assert_eq!(
        text,
        "ids of Id<Prefixed> were given, and no aggregate whose histories \"sums\" gets has such ids"
    );
}

/// A projector that accepts every event and keeps nothing.
struct Blind;
impl Projector for Blind {
    const NAME: &'static str = "blind";
    type Events = CounterEvent;
    async fn project(&self, _: &CounterEvent, _: &EventContext) -> HandlerResult {
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

#[test]
fn rows_that_no_event_changes_check_nothing() {
    let laws = ProjectorLaws::new(Rows::new, |_| Blind, async |rows: &Rows| rows.clone());
    let laws = laws.with_histories::<Counter<Number>, _>(1, (1u64..9).prop_map(Add));
    let text = failure(|| laws.check());
    assert!(
        text.contains("left the rows of \"blind\" as those of an empty model"),
        "{text}"
    );
}

#[test]
fn an_aggregate_decides_under_an_id_of_its_own_type() {
    let add = || (1u64..9).prop_map(Add);
    Laws::<Counter<Uuid>>::new(add()).check();
    Laws::<Counter<Ulid>>::new(add()).check();
    Laws::<Counter<Number>>::new(add()).check();
    Laws::<Counter<Number>>::exhaustive([Add(1), Add(2)], 3).check();
    let given = "cart_[a-z]{3}".prop_map(id::<Prefixed>);
    Laws::<Counter<Prefixed>>::new(add())
        .with_ids(given.clone())
        .check();
    Laws::<Counter<Prefixed>>::exhaustive([Add(1)], 3)
        .with_ids(given)
        .check();
}

#[test]
fn a_counterexample_is_told_under_the_id_that_it_was_found_under() {
    let laws = Laws::<Counter<Number>>::exhaustive([Add(5)], 1);
    let text = failure(|| {
        laws.with_invariant("not five", |counter| counter.0 != 5)
            .check()
    });
    assert!(
        text.contains("    .of(&\"1\".parse().unwrap())\n"),
        "{text}"
    );
    let _ = Scenario::<Counter<Number>>::given_nothing()
        .of(&"1".parse().unwrap())
        .when(Add(5))
        .then([Added { n: 5 }]);
}

#[test]
fn an_aggregate_without_an_id_is_one_failure_before_the_first_case() {
    let drawn = Arc::new(AtomicUsize::new(0));
    let counted = drawn.clone();
    let commands = (1u64..9).prop_map(move |n| {
        counted.fetch_add(1, Ordering::SeqCst);
        Add(n)
    });
    for text in [
        failure(|| Laws::<Counter<Prefixed>>::new(commands).check()),
        failure(|| Laws::<Counter<Prefixed>>::exhaustive([Add(1)], 2).check()),
    ] {
        let beginning = "no common texts name 1 stream of Counter<Prefixed>: give ids of its type with `.with_ids(strategy)`";
        assert!(text.starts_with(beginning), "{text}");
    }
    assert_eq!(drawn.load(Ordering::SeqCst), 0);
}

#[test]
fn a_rule_about_commands_that_are_not_given_checks_nothing() {
    for laws in [
        Laws::<Counter<Number>>::new((1u64..9).prop_map(Add)),
        Laws::<Counter<Number>>::exhaustive([Add(1)], 2),
    ] {
        let laws = laws.with_rule("never one", |_, _: &AddOne, _| false);
        let text = failure(|| laws.check());
        let beginning = "the rule \"never one\" of Counter<Number> is about commands of the type AddOne, and none was given";
        assert!(text.starts_with(beginning), "{text}");
    }
}

#[test]
fn texts_that_are_all_refused_check_nothing() {
    let laws = Laws::<Counter<Number>>::new((1u64..9).prop_map(Add)).with_id_texts("[a-z]{1,3}");
    let text = failure(|| laws.check());
    assert!(
        text.starts_with("all 256 texts that were drawn for ids of Counter<Number> were refused"),
        "{text}"
    );
}

#[test]
fn what_is_only_for_the_other_kind_of_laws_is_refused() {
    let drawn = || Laws::<Counter<Number>>::new((1u64..9).prop_map(Add));
    let all = || Laws::<Counter<Number>>::exhaustive([Add(1)], 2);
    for text in [
        failure(|| all().with_max_commands(3)),
        failure(|| all().with_pauses(Just(std::time::Duration::ZERO))),
        failure(|| all().with_id_texts("[0-9]")),
    ] {
        assert!(text.contains("is for drawn sequences"), "{text}");
    }
    for text in [
        failure(|| drawn().with_merged_states()),
        failure(|| drawn().with_max_histories(3)),
    ] {
        assert!(text.contains("is for exhaustive laws"), "{text}");
    }
}

#[test]
fn a_weight_of_nothing_is_refused() {
    let text = failure(|| {
        Laws::<Counter<Number>>::new((1u64..9).prop_map(Add)).with_commands(0, Just(AddOne))
    });
    assert_eq!(
        text,
        "a weight of 0 draws no command of the type AddOne: give 1 or more"
    );
    let laws = watched().laws;
    let text = failure(|| laws.with_histories::<Counter<Number>, _>(0, Just(AddOne)));
    assert_eq!(
        text,
        "a weight of 0 draws no command of Counter<Number>: give 1 or more"
    );
}

#[test]
fn a_model_that_is_not_made_anew_is_caught() {
    let one = Sums::default();
    let rows = async |sums: &Sums| sums.rows.lock().unwrap().clone();
    let laws = ProjectorLaws::new(move || one.clone(), Sums::clone, rows);
    let laws = laws.with_histories::<Counter<Number>, _>(1, Just(AddOne));
    let text = failure(|| laws.check());
    assert!(
        text.starts_with("a law of Sums is broken: each model starts empty"),
        "{text}"
    );
    assert!(text.contains("make a new model in each call"), "{text}");
}
