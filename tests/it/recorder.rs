//! A recorder of metrics that keeps them.
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Keeps the last value of each metric, by name and labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<BTreeMap<String, f64>>>);

struct Cell(String, Recorder);
impl Cell {
    fn change(&self, to: impl FnOnce(f64) -> f64) {
        let mut values = self.1.0.lock().unwrap();
        let value = values.entry(self.0.clone()).or_default();
        *value = to(*value);
    }
}
impl CounterFn for Cell {
    fn increment(&self, by: u64) {
        self.change(|value| value + by as f64);
    }
    fn absolute(&self, value: u64) {
        self.change(|_| value as f64);
    }
}
impl GaugeFn for Cell {
    fn increment(&self, by: f64) {
        self.change(|value| value + by);
    }
    fn decrement(&self, by: f64) {
        self.change(|value| value - by);
    }
    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}
impl HistogramFn for Cell {
    /// Counts the values.
    fn record(&self, _: f64) {
        self.change(|value| value + 1.0);
    }
}

impl Recorder {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels = key.labels();
        let mut labels: Vec<_> = labels
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Cell(name, self.clone()))
    }
    /// Returns the value of a metric with exactly these labels.
    pub(crate) fn of(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut all: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        all.sort();
        let key = format!("{name}{{{}}}", all.join(","));
        self.0.lock().unwrap().get(&key).copied()
    }
    /// Returns the names and labels of all metrics.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}
