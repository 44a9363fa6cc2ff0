//! The disturbances of the processes, the service and the store.
use super::super::{
    CircuitState,
    quorum::Request,
    rows::{EpochRow, VoteRow},
};
use super::{Fate, NODES, World};

impl World {
    /// Puts what earlier processes have left: votes of this epoch and of older ones.
    pub(super) fn leave_behind(&mut self) {
        let epoch = self.rng.u64(0..3);
        if epoch > 0 {
            let row = EpochRow {
                epoch,
                ..EpochRow::default()
            };
            let revision = self.store.fresh();
            self.store.epoch = Some((row, revision));
        }
        for gone in 0..self.rng.usize(0..3) {
            let epoch = epoch.saturating_sub(self.rng.u64(0..2));
            let revision = self.store.fresh();
            let vote = (VoteRow { epoch }, revision);
            self.store.votes.insert(format!("gone{gone}"), vote);
        }
    }

    /// Lets a process that is cut off from reading renew its vote of an epoch that has ended.
    pub(super) fn renew_old_vote(&mut self) {
        let Some((row, _)) = &self.store.epoch else {
            return;
        };
        let epoch = row.epoch - 1;
        let revision = self.store.fresh();
        let vote = (VoteRow { epoch }, revision);
        self.store.votes.insert("cut off".into(), vote);
    }

    /// Lets something happen to the processes, the service or the store.
    pub(super) fn disturb(&mut self) {
        let id = match self.one_bad && self.chance(70) {
            true => 0,
            false => self.rng.usize(0..NODES),
        };
        // Outages of the service last long enough for a quorum.
        match self.rng.u32(0..1000) {
            0..40 if !self.one_bad && (!self.service_down || self.chance(20)) => {
                self.service_down = !self.service_down;
                let down = self.service_down;
                self.note(|| format!("the service is down: {down}"));
            }
            40..48 if !self.store_down => self.store_down = true,
            40..100 if self.store_down => self.store_down = false,
            100..110 => self.crash(id),
            // A bad process starts again and again.
            110..150 if self.one_bad => self.crash(0),
            150..165 => self.rebalance(id),
            165..190 => self.renew_old_vote(),
            _ => {}
        }
    }

    pub(super) fn crash(&mut self, id: usize) {
        let node = &self.nodes[id];
        let (probing, life) = (node.machine.circuit.is_probing(), node.life + 1);
        self.note(|| format!("n{id} crashes and starts again"));
        self.hit("a process crashed");
        if probing {
            self.hit("a process crashed while it probed");
        }
        if let Some((_, request, _)) = self.nodes[id].request.take()
            && request != Request::Read
        {
            self.hit("a process crashed with a request on its way");
            if self.chance(50) {
                self.perform(id, &request, Fate::Late);
            }
        }
        let serving = self.nodes[id].serving;
        self.nodes[id] = self.born(id, life);
        self.set_serving(id, serving);
    }

    pub(super) fn rebalance(&mut self, id: usize) {
        let serving = !self.nodes[id].serving;
        self.note(|| format!("n{id} serves: {serving}"));
        if !serving && !self.nodes[id].machine.circuit.is_closed() {
            self.hit("a process lost all its work while it was open");
        }
        // Its calls are cancelled with their partitions.
        for call in std::mem::take(&mut self.nodes[id].running) {
            if call.ticket.is_probe() {
                self.free_at_once(id);
            }
            self.nodes[id].machine.release(call.ticket);
        }
        self.set_serving(id, serving);
        self.after(id);
    }

    pub(super) fn set_serving(&mut self, id: usize, serving: bool) {
        let now = self.now;
        let node = &mut self.nodes[id];
        node.serving = serving;
        node.machine.set_serving(serving, now);
        node.wake = now;
    }

    /// Ends all faults. From now on every process must come to call again.
    pub(super) fn heal(&mut self) {
        self.faults = false;
        self.service_down = false;
        self.store_down = false;
        for id in 0..NODES {
            self.nodes[id].bad = false;
            self.set_serving(id, true);
        }
        self.note(|| "all is well".into());
    }

    pub(super) fn is_calm(&self) -> bool {
        let is_own = |voter: &String| voter.starts_with('n');
        self.late.is_empty()
            && !self.store.votes.keys().any(is_own)
            && self
                .nodes
                .iter()
                .all(|node| node.machine.state(self.now) == CircuitState::Closed)
    }
}
