//! The laws of an aggregate on sequences that are drawn from strategies.
use super::{
    aggregate::{Laws, Source, default_id},
    checked::Checked,
    command::{ShownId, Step},
    story::{Found, short_name},
};
use foldstream::Aggregate;
use proptest::{
    prelude::*,
    strategy::Union,
    test_runner::{Config, TestError, TestRunner},
};
use std::{
    cell::{Cell, RefCell},
    fmt::{self, Debug},
};

/// An id and a sequence of commands, which are one case.
pub(super) struct Case<A: Aggregate> {
    pub(super) id: ShownId<A>,
    pub(super) id_text: Option<String>,
    pub(super) steps: Vec<Step<A>>,
}

impl<A: Aggregate> Debug for Case<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.id, self.id_text, self.steps)
    }
}

impl<A: Aggregate + PartialEq + Debug> Laws<A> {
    /// Checks the laws on drawn sequences, and returns how much was checked.
    ///
    /// If nothing was checked, more sequences are drawn before this is a failure.
    #[track_caller]
    pub(super) fn check_drawn(&self) -> Checked {
        let mut checked = Checked::default();
        let mut why = None;
        for (config, seed) in self.plan.rounds() {
            let texts = self.check_round(config, seed, &mut checked);
            why = texts.or_else(|| self.unchecked(&checked));
            if why.is_none() {
                return checked;
            }
        }
        panic!("{}", why.unwrap_or_default())
    }

    /// Checks the laws on the sequences of one seed. Returns the reason for which texts of ids were
    /// not checked, if there is one.
    #[track_caller]
    fn check_round(&self, config: Config, seed: u64, checked: &mut Checked) -> Option<String> {
        let sequences = self.sequences();
        let mut runner = TestRunner::new(config);
        let found = Found::default();
        let checked = RefCell::new(checked);
        let texts = Cell::new((0, 0));
        let outcome = runner.run(&sequences, |case| match self.rules.hold(&case) {
            Ok(sequence) => {
                checked.borrow_mut().add(&sequence);
                if let Some(text) = &case.id_text {
                    let (drawn, read) = texts.get();
                    let is_read = text.parse::<A::Id>().is_ok();
                    texts.set((drawn + 1, read + u32::from(is_read)));
                }
                Ok(())
            }
            Err(broken) => found.take(broken),
        });
        match (outcome, found.into_smallest()) {
            (Ok(()), _) => {}
            (Err(TestError::Fail(..)), Some(broken)) => {
                panic!("{}", broken.shown(&short_name::<A>(), Some(seed)))
            }
            (Err(error), _) => panic!("the laws of {}: {error}", short_name::<A>()),
        }
        let (drawn, read) = texts.get();
        (drawn > 0 && read == 0).then(|| {
            format!(
                "all {drawn} texts that were drawn for ids of {} were refused: draw some that are ids",
                short_name::<A>()
            )
        })
    }

    #[track_caller]
    fn sequences(&self) -> impl Strategy<Value = Case<A>> + use<A> {
        let Source::Drawn {
            commands,
            pauses,
            id_texts,
            max_commands,
        } = &self.source
        else {
            unreachable!("`check` asks only for drawn sequences");
        };
        let step = (Union::new_weighted(commands.clone()), pauses.clone())
            .prop_map(|(command, after)| Step { command, after });
        let ids = match &self.ids {
            Some(ids) => ids.clone(),
            None => Just(default_id()).boxed(),
        };
        let texts = id_texts
            .clone()
            .map_or_else(|| Just(None).boxed(), |texts| texts.prop_map(Some).boxed());
        let steps = proptest::collection::vec(step, 0..=*max_commands);
        (ids, texts, steps).prop_map(|(id, id_text, steps)| Case { id, id_text, steps })
    }
}
