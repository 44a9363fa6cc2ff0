//! The list of circuit breakers that processes share.
use super::{CommandError, Console, Outcome, show::count};
use foldstream::operate::BreakerStatus;
use std::{io, time::Duration};

impl<W: io::Write + Send> Console<'_, W> {
    pub(super) async fn breakers(&mut self) -> Result<Outcome, CommandError> {
        let earlier = self.operator.breakers().await?;
        if earlier.is_empty() {
            self.line("no process has shared a circuit breaker on this control store yet")?;
            return Ok(Outcome::Done);
        }
        // A vote counts only if it is seen to be renewed, which takes a second read.
        if earlier.iter().any(|breaker| !breaker.votes.is_empty()) {
            let renew = earlier.iter().filter_map(|breaker| breaker.renew).max();
            let renew = renew.unwrap_or(Duration::from_secs(5));
            tokio::time::sleep(renew + renew / 2).await;
        }
        for breaker in self.operator.breakers().await? {
            let before = earlier.iter().find(|before| before.name == breaker.name);
            self.breaker(&match before {
                Some(before) => breaker.compared_with(before),
                None => breaker,
            })?;
        }
        Ok(Outcome::Done)
    }

    fn breaker(&mut self, breaker: &BreakerStatus) -> io::Result<()> {
        let state = match (breaker.is_open(), breaker.counting()) {
            (true, _) => "open everywhere",
            (false, 0) => "closed",
            (false, _) => "open in the processes that vote",
        };
        let of = breaker.quorum.map_or("an unknown quorum".into(), |quorum| {
            format!("{quorum} needed to open it everywhere")
        });
        let counting = count(breaker.counting() as u64, "vote");
        self.line(format!("{:16} {state}: {counting}, {of}", breaker.name))?;
        for vote in &breaker.votes {
            self.line(format!("  {} {}", vote.instance, vote.state))?;
        }
        if let Some(probe) = &breaker.probe {
            let owner = probe.owner.as_deref().unwrap_or("nobody");
            let pause = probe.open_time;
            self.line(format!("  probed by {owner}, {pause:?} between two probes"))?;
        }
        Ok(())
    }
}
