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
    test_runner::{TestError, TestRunner},
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
    #[track_caller]
    pub(super) fn check_drawn(&self) -> Checked {
        let (config, seed) = self.plan.config();
        let sequences = self.sequences();
        let mut runner = TestRunner::new(config);
        let found = Found::default();
        let checked = RefCell::new(Checked::default());
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
        assert!(
            drawn == 0 || read > 0,
            "all {drawn} texts that were drawn for ids of {} were refused: draw some that are ids",
            short_name::<A>()
        );
        checked.into_inner()
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
