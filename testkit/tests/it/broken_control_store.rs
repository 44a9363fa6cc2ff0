//! Control stores that each break one rule of the contract, and the proof that every case is
//! needed.
mod conditions;
mod range;
mod rows;

use crate::matrix::{Suspect, assert_every_case_is_needed};
use foldstream::ports::{
    ControlStore, ControlStoreError, DeleteOutcome, PutOutcome, RangeQuery, Row, RowPage,
};
use foldstream_testkit::{
    InMemoryControlStore, contract,
    intercept::{self, ControlStoreLayer},
};
use std::sync::Arc;

type Store = Arc<dyn ControlStore>;
type Got = Result<Option<Row>, ControlStoreError>;
type GotMany = Result<Vec<Option<Row>>, ControlStoreError>;
type Put = Result<PutOutcome, ControlStoreError>;
type Deleted = Result<DeleteOutcome, ControlStoreError>;
type Page = Result<RowPage, ControlStoreError>;

/// Returns all rows of a query from all its pages.
async fn all(store: &Store, query: &RangeQuery) -> Vec<Row> {
    let (mut rows, mut query) = (Vec::new(), query.clone());
    loop {
        let page = store.range(&query).await.unwrap();
        rows.extend(page.rows);
        if page.next.is_none() {
            return rows;
        }
        query = query.with_after(page.next);
    }
}

/// A layer that changes nothing, which shows that the wrapper itself breaks no rule.
#[derive(Debug, Default)]
struct Nothing;
impl ControlStoreLayer for Nothing {}

type Suspects = Vec<Suspect<Arc<dyn ControlStore>>>;

fn broken<L: ControlStoreLayer + Default>(
    rejected_by: &'static [&'static str],
) -> Suspect<Arc<dyn ControlStore>> {
    Suspect::new::<L>(
        &[],
        || intercept::control_store(InMemoryControlStore::new(), L::default()),
        rejected_by,
    )
}

#[test]
fn every_case_rejects_a_broken_control_store() {
    let suspects: Suspects = [
        vec![broken::<Nothing>(&[])],
        rows::suspects(),
        conditions::suspects(),
        range::suspects(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_every_case_is_needed(&contract::control_store::cases(), &suspects);
}
