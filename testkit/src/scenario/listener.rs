//! Given records, when a record, then side effects, or the class of the failure.
use super::handler::{HandlerScenario, Listens, Words};
use foldstream::{
    EventSet,
    runner::{Listener, ProcessorPolicy, RunnerBuilder},
};
use std::sync::Arc;

/// A listener, the records that it has received, and their side effects.
///
/// The real runner decides what the listener sees: each step delivers records over the in-memory
/// bus and runs the listener until they are dealt with, including retries. Time is paused, so a
/// backoff of minutes takes none. **Each step is a new process**, so a record that [is delivered
/// again](Self::when_delivered) reaches the listener again: delivery is at least once.
///
/// By its default policy a listener starts at the current end of the log, so it never sees events
/// that were [given](Self::given). Streams are named as in
/// [`ProjectorScenario`](crate::ProjectorScenario), and its notes on runtime and time hold here.
///
/// # Example
/// ```
/// # use foldstream::{DomainEvent, EventId};
/// # use foldstream::runner::{
/// #     ErrorClass, EventContext, HandlerError, HandlerResult, Listener, ResultExt,
/// # };
/// # use std::{collections::BTreeMap, sync::Mutex};
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "order")]
/// # enum OrderEvent { Placed { mail: String }, Paid }
/// # use OrderEvent::{Paid, Placed};
/// # #[derive(Default)]
/// # struct Confirmations { sent: Mutex<BTreeMap<EventId, String>> }
/// impl Listener for Confirmations {
///     const NAME: &'static str = "confirmations";
///     type Events = OrderEvent;
///     async fn handle(&self, event: &OrderEvent, ctx: &EventContext) -> HandlerResult {
///         if let Placed { mail } = event {
///             if !mail.contains('@') {
///                 return Err(HandlerError::permanent(format!("{mail:?} is no address")));
///             }
///             // The same on every delivery: who gets it twice can tell.
///             self.sent.lock().unwrap().insert(ctx.event_id(), mail.clone());
///         }
///         Ok(())
///     }
/// }
///
/// use foldstream_testkit::ListenerScenario;
/// let sent = async |c: &Confirmations| -> Vec<String> { c.sent.lock().unwrap().values().cloned().collect() };
/// ListenerScenario::new(Confirmations::default(), sent)
///     .given("o-1", [Placed { mail: "before@its.start".into() }])
///     .when("o-2", [Placed { mail: "ann@example.org".into() }, Paid])
///     .then(["ann@example.org".into()])
///     .when_delivered("o-2", 1)
///     .then_unchanged()
///     .when("o-3", [Placed { mail: "nowhere".into() }])
///     .then_failed(ErrorClass::Permanent)
///     .then_unchanged();
/// ```
pub type ListenerScenario<L, R> = HandlerScenario<L, R, Listens>;

impl<L: Listener, R> HandlerScenario<L, R, Listens> {
    /// Creates the scenario of a listener before any event. The closure reads the side effects:
    /// `async |listener| listener.mails.sent()`.
    ///
    /// # Panics
    /// If it is called inside of a tokio runtime: the test must be a plain `#[test]`.
    #[track_caller]
    #[must_use]
    pub fn new(listener: L, effects: impl AsyncFn(&L) -> R + 'static) -> Self {
        let listener = Arc::new(listener);
        let selectors = L::Events::selectors();
        let words = Words {
            aggregates: selectors
                .iter()
                .map(|selector| selector.aggregate)
                .collect(),
            handler: "listener",
            results: "side effects",
        };
        let added = listener.clone();
        let add =
            move |builder: RunnerBuilder, policy| builder.listener_with(added.clone(), policy);
        Self::start(listener, words, ProcessorPolicy::listener(), add, effects)
    }
}
