//! The order in which an owner reads the rows of its partition.
use super::views::*;
use foldstream::{
    ports::{ControlStore, ControlStoreError, RangeQuery, Row, RowKey, RowPage},
    runner::Runner,
};
use foldstream_testkit::intercept::{self, ControlStoreLayer, async_trait};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Lets the operator ask for a redrive right after one of the reads of the rows about failed
/// events: the nth, from 1.
struct AsksBetween {
    shop: Arc<Shop>,
    nth: u32,
    reads: AtomicU32,
}

impl AsksBetween {
    async fn read(&self, partition: &str) {
        let is_about_failures = ["park/", "dlq/", "discarded/", "ask/"];
        if !is_about_failures
            .iter()
            .any(|kind| partition.starts_with(kind))
        {
            return;
        }
        let read = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        if read == self.nth {
            assert!(self.shop.operator.redrive("a").await);
        }
    }
}

#[async_trait]
impl ControlStoreLayer for AsksBetween {
    async fn get(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
    ) -> Result<Option<Row>, ControlStoreError> {
        let row = inner.get(key).await;
        self.read(&key.partition).await;
        row
    }
    async fn get_many(
        &self,
        inner: &Arc<dyn ControlStore>,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        let rows = inner.get_many(keys).await;
        self.read(&keys[0].partition).await;
        rows
    }
    async fn range(
        &self,
        inner: &Arc<dyn ControlStore>,
        query: &RangeQuery,
    ) -> Result<RowPage, ControlStoreError> {
        let page = inner.range(query).await;
        self.read(&query.partition).await;
        page
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_between_any_two_reads_at_the_assignment_is_served_by_the_next_poll() {
    // Five reads at the assignment, then polls.
    for nth in 1..=8 {
        let shop = Arc::new(Shop::new(&[("a", 2)]));
        shop.deposits(&["a", "a", "a"]).await;
        let running = shop.start();
        seconds(5).await;
        running.stop().await;
        shop.views.fix();
        let layer = AsksBetween {
            shop: shop.clone(),
            nth,
            reads: AtomicU32::new(0),
        };
        let control = shop.world.control.clone() as Arc<dyn ControlStore>;
        let control = intercept::control_store(control, layer);
        let runner = Runner::builder(shop.world.bus.clone(), control.clone(), "example-group");
        let runner = runner.with_event_store(shop.world.store.clone());
        let runner = runner.projector_with(shop.views.clone(), policy());
        let running = Running::start(runner.build().unwrap());
        // The rows are read again after five minutes whatever the token says: that is too late.
        seconds(60).await;
        assert!(control.layer().reads.load(Ordering::SeqCst) > nth);
        assert_eq!(shop.views.of("a"), [1, 2, 3], "asked after read {nth}");
        shop.assert_at_rest().await;
        running.stop().await;
    }
}
