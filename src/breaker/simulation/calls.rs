//! Calls of the service, and the probes among them.
use super::super::{Admission, Outcome, circuit::Kind};
use super::{FIRST_OPEN, Running, World, label};

impl World {
    pub(super) fn start_call(&mut self, id: usize) {
        let now = self.now;
        let pause = self.within(200, 8000);
        let took = match self.chance(10) {
            true => self.within(1000, 30_000),
            false => self.within(1, 1500),
        };
        let node = &mut self.nodes[id];
        node.next_call = now + pause;
        if !node.serving {
            return;
        }
        let leased_before = node.machine.ready_at(now);
        let (openings, epoch) = (node.openings, node.epoch);
        match node.machine.admit(now) {
            Admission::Refused { until } => {
                if until != leased_before {
                    self.fail("the end of the wait was not announced");
                }
                if self.nodes[id].machine.circuit.is_probing() {
                    self.hit("a call was refused while a probe ran");
                }
                if self.one_bad && self.faults && id != 0 {
                    self.fail("one bad process has stopped a good one");
                }
            }
            Admission::Call(ticket) | Admission::Probe(ticket) => {
                if let Kind::Leased { epoch } = ticket.kind {
                    self.start_leased(id, epoch);
                }
                let end = now + took;
                self.nodes[id].running.push(Running {
                    ticket,
                    end,
                    openings,
                    epoch,
                });
            }
        }
    }

    /// Checks that only the holder of the lease probes, except after a take-over, and not too soon
    /// after the last one.
    pub(super) fn start_leased(&mut self, id: usize, epoch: u64) {
        let lease = self.nodes[id].machine.quorum.as_ref().unwrap();
        let lease = lease.lease_epoch().unwrap();
        self.note(|| format!("n{id} probes for all in epoch {epoch}, lease {lease}"));
        let name = format!("{}#{}", label(id), self.nodes[id].life);
        match self.owners.get_mut(&lease) {
            Some((owner, ready)) if *owner == name => {
                if self.now < *ready {
                    self.fail("two leased probes without the open time between them");
                }
                *ready = self.now + FIRST_OPEN;
            }
            _ => self.fail("a process probes for all without the lease"),
        }
        let mut others = self.nodes.iter().filter(|node| {
            let leased = |call: &Running| call.ticket.kind == Kind::Leased { epoch };
            node.id != id && node.running.iter().any(leased)
        });
        if others.next().is_some() {
            self.hit("two processes probed at once after a take-over");
        }
    }

    pub(super) fn end_call(&mut self, id: usize) {
        let now = self.now;
        let failing = self.service_down || self.nodes[id].bad;
        let calls = &mut self.nodes[id].running;
        let Some(index) = calls.iter().position(|call| call.end <= now) else {
            return;
        };
        let call = calls.swap_remove(index);
        let outcome = self.outcome(failing);
        let node = &mut self.nodes[id];
        let before = node.machine.state(now);
        let (kind, is_probe) = (call.ticket.kind, call.ticket.is_probe());
        let is_old = !is_probe && call.openings != node.openings;
        let is_of_old_epoch = call.epoch.is_some() && call.epoch != node.epoch;
        let epoch = node.epoch;
        let rejoined = node.machine.circuit.is_probing();
        if outcome == Outcome::Cancelled {
            node.machine.release(call.ticket);
        } else {
            node.machine.settle(call.ticket, outcome, now);
        }
        let after = node.machine.state(now);
        self.note(|| format!("n{id} {kind:?} ended {outcome:?}: {before:?} -> {after:?}"));
        if (is_old || is_of_old_epoch) && before != after {
            self.fail("an old answer has changed the state");
        }
        if is_old {
            self.hit("an answer to a call from before an opening was ignored");
        }
        if is_of_old_epoch {
            self.hit("an answer to a call from before an epoch was ignored");
        }
        if is_probe && !rejoined {
            self.fail("the slot of a running probe was given away");
        }
        self.probed(id, kind, outcome, epoch);
    }

    pub(super) fn outcome(&mut self, failing: bool) -> Outcome {
        let throttled = Outcome::Throttled {
            retry_after: self.within(0, 3000),
        };
        match (self.rng.u32(0..20), failing) {
            (0 | 1, _) if self.faults => Outcome::Cancelled,
            (2, _) if self.faults => Outcome::Poison,
            (3..6, true) => Outcome::Transient,
            // A bad process does not reach the service at all.
            (6, true) if self.faults && !self.one_bad => throttled,
            (_, true) => Outcome::Transient,
            (3, false) => Outcome::Permanent,
            (_, false) => Outcome::Success,
        }
    }

    pub(super) fn probed(&mut self, id: usize, kind: Kind, outcome: Outcome, known: Option<u64>) {
        let found = matches!(
            outcome,
            Outcome::Success | Outcome::Permanent | Outcome::Throttled { .. }
        );
        let nothing = matches!(outcome, Outcome::Cancelled | Outcome::Poison);
        match kind {
            Kind::Call => return,
            _ if nothing => self.hit("a probe ended without a verdict"),
            Kind::Probe if found => self.hit("a local probe succeeded"),
            Kind::Probe => self.hit("a local probe failed"),
            Kind::Leased { epoch } if found => {
                self.hit("a leased probe succeeded");
                if known == Some(epoch) {
                    let who = format!("{}#{}", label(id), self.nodes[id].life);
                    self.reachable.insert((who, epoch));
                }
            }
            Kind::Leased { .. } => self.hit("a leased probe failed"),
        }
        if nothing {
            self.free_at_once(id);
        }
    }

    /// After a probe without a verdict another one may follow at once.
    pub(super) fn free_at_once(&mut self, id: usize) {
        let name = format!("{}#{}", label(id), self.nodes[id].life);
        for (owner, ready) in self.owners.values_mut() {
            if *owner == name {
                *ready = self.now.min(*ready);
            }
        }
    }
}
