//! The laws of a projector on one case, and what is told of a law that is broken.
use super::{
    super::{
        deliveries::{Delivery, deliveries},
        moves::{Drive, Failed, Law},
        story::Broken,
        written,
    },
    Case, ProjectorLaws, Seen,
};
use foldstream::runner::Projector;
use std::fmt::Debug;

impl<P: Projector, M: 'static, R: PartialEq + Debug + 'static> ProjectorLaws<P, M, R> {
    /// Checks every law on one case.
    pub(super) async fn hold(&self, case: &Case, empty: &R) -> Result<Seen, Broken> {
        let all = deliveries::<P::Events>(&case.writes, case.choice, &self.upcasters).await;
        let all = all.map_err(|error| Broken {
            law: "the events can be read".into(),
            found: vec![error],
            test: Vec::new(),
            is_of_all: false,
        })?;
        let expected = self.rebuilt(&all, empty).await?;
        for law in Law::ORDER {
            let drive = Drive::new(law, self.fresh(empty).await?, &*self.process, &all);
            let told = match drive.rows(&case.noise, &self.rows).await {
                Ok((rows, _)) if rows == expected => continue,
                Ok((rows, drive)) => drive.failed(format!("the rows: {rows:?}")),
                Err(failed) => failed,
            };
            return Err(self.broken(law.name(), told, &expected));
        }
        let aggregates = all.iter().map(|delivery| delivery.stream().aggregate());
        Ok(Seen {
            events: all.len(),
            aggregates: aggregates.map(Into::into).collect(),
            has_rows: expected != *empty,
        })
    }

    /// Makes a model for one run. Rows left by an earlier run would hide that this one writes none.
    async fn fresh(&self, empty: &R) -> Result<M, Broken> {
        let model = (self.model)();
        let rows = (self.rows)(&model).await;
        if rows == *empty {
            return Ok(model);
        }
        Err(Broken {
            law: "each model starts empty".into(),
            found: vec![
                format!("the rows of a new model: {rows:?}"),
                format!("expected: {empty:?}"),
                "let the first argument of `ProjectorLaws::new` make a new model in each call"
                    .into(),
            ],
            test: Vec::new(),
            is_of_all: false,
        })
    }

    /// Returns the rows without any disturbance. The model is reset and rebuilt in between.
    async fn rebuilt(&self, all: &[Delivery<P::Events>], empty: &R) -> Result<R, Broken> {
        const RESET: &str = "a reset empties the model";
        const POSITION: &str = "a position is not ahead of the rows";
        let taken = |failed| self.broken_rows("every event is taken in", failed, None);
        let model = self.fresh(empty).await?;
        let drive = Drive::new(Law::Batches, model, &*self.process, all);
        self.check_position(&drive, POSITION).await?;
        let (expected, drive) = drive.rows(&[], &self.rows).await.map_err(taken)?;
        self.check_position(&drive, POSITION).await?;
        let left = drive.reset(&self.rows).await.map_err(taken)?;
        if left != *empty {
            let mut failed = drive.failed(format!("the rows: {left:?}"));
            failed.moves.push("reset".into());
            failed.test.push("    .when_rebuilt()".into());
            return Err(self.broken(RESET, failed, empty));
        }
        let drive = drive.again();
        self.check_position(&drive, RESET).await?;
        let (again, drive) = drive.rows(&[], &self.rows).await.map_err(taken)?;
        if again != expected {
            let mut failed = drive.failed(format!("the rows of the second time: {again:?}"));
            failed
                .moves
                .insert(0, "reset after all of these, and again:".into());
            failed.test.push("    .when_rebuilt()".into());
            return Err(self.broken(RESET, failed, &expected));
        }
        Ok(expected)
    }

    /// Checks that a process which starts now would be given every event that none has had.
    async fn check_position(&self, drive: &Drive<'_, P, M>, law: &str) -> Result<(), Broken> {
        let read = |failed| self.broken_rows("every position can be read", failed, None);
        let Some(wrong) = drive.wrong_position().await.map_err(read)? else {
            return Ok(());
        };
        let mut found = vec!["events:".to_owned()];
        let moves = drive.failed(String::new()).moves;
        found.extend(moves.iter().map(|line| format!("  {line}")));
        found.push(wrong);
        found.push(
            "a runner leaves out all events up to it: keep a position for each stream, with its rows, and delete both in a \
             reset"
                .into(),
        );
        Err(Broken {
            law: law.into(),
            found,
            test: Vec::new(),
            is_of_all: false,
        })
    }

    pub(super) fn stuck(&self, case: &Case) -> Broken {
        let mut found = vec!["commands:".to_owned()];
        found.extend(case.writes.iter().map(|write| format!("  {write:?}")));
        found.push(format!(
            "the projector had not taken in their events after {:?}: one of its calls does not return. A model that is only slow needs `.with_time_limit(..)`",
            self.time_limit
        ));
        Broken {
            law: "every call of the projector returns".into(),
            found,
            test: Vec::new(),
            is_of_all: false,
        }
    }

    fn broken(&self, law: &str, failed: Failed, expected: &R) -> Broken {
        self.broken_rows(law, failed, Some(&format!("{expected:?}")))
    }

    fn broken_rows(&self, law: &str, failed: Failed, expected: Option<&str>) -> Broken {
        let mut found = vec!["events:".to_owned()];
        found.extend(failed.moves.iter().map(|line| format!("  {line}")));
        found.push(failed.why);
        found.push(format!("expected: {}", expected.unwrap_or("no failure")));
        let mut test = failed.test;
        match test.last_mut() {
            Some(last) if last.ends_with(".then_unchanged()") => last.push(';'),
            Some(last) if last.ends_with(".when_rebuilt()") => {
                test.push("    .then_unchanged();".into());
            }
            _ => {
                // A scenario fails where the call failed, before it compares any rows.
                let rows =
                    expected.map_or_else(|| "todo!(\"the rows\")".into(), written::expression);
                test.push(format!("    .then({});", rows.trim_end_matches(".into()")));
            }
        }
        Broken {
            law: law.into(),
            found,
            test,
            is_of_all: law == Law::All.name(),
        }
    }
}
