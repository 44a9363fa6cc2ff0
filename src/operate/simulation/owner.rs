//! The owner of the partition, which serves requests and may die at any step.
use super::*;

impl World {
    pub(super) async fn own(&self, me: &str) {
        while !self.seen().is_over {
            let page = self.insist(|| self.rows.park_page(&self.at, None)).await;
            for (of, row) in page.rows {
                if row.value.wants_redrive() {
                    self.serve(me, &of, row).await;
                }
            }
            let asks = self.insist(|| self.rows.ask_page(&self.at, None)).await;
            for (key, ask) in asks.rows {
                self.serve_ask(&key, ask).await;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts a value, merged with whatever it meets. `None`: the row is gone, or another owner's.
    async fn put_merged(
        &self,
        me: &str,
        of: &StreamId,
        mut wanted: ParkRow,
        mut seen: crate::ports::Revision,
    ) -> Option<Stored<ParkRow>> {
        loop {
            let put = self.insist(|| self.rows.park_replace(&self.at, of, wanted.clone(), seen));
            match put.await {
                PutIf::Written(row) => return Some(row),
                PutIf::Conflict(None) => return None,
                PutIf::Conflict(Some(theirs)) => {
                    wanted = merge(&wanted, &theirs.value, me)?;
                    seen = theirs.revision;
                }
            }
        }
    }

    async fn serve(&self, me: &str, of: &StreamId, row: Stored<ParkRow>) {
        let claimed = row.value.claimed(me).unwrap();
        if let ParkState::Requested(Request { job: Some(job), .. }) = &row.value.state {
            let put = self
                .rows
                .park_replace(&self.at, of, claimed.clone(), row.revision)
                .await;
            let Ok(PutIf::Written(_)) = put else { return };
            let key = (of.as_str().to_owned(), row.value.id.as_u128(), *job);
            let mut seen = self.seen();
            let claims = seen.claims.entry(key).or_default();
            *claims += 1;
            assert_eq!(*claims, 1, "{job} has asked for {of} twice");
            assert!(
                !seen.aborted.contains(job),
                "{job} asks for {of} although it is aborted"
            );
            drop(seen);
        }
        let Some(mut row) = self.get(of.id()).await else {
            return;
        };
        if row.value.state != claimed.state {
            let claimed = row.value.claimed(me);
            let Some(claimed) = claimed else { return };
            let put = self
                .rows
                .park_replace(&self.at, of, claimed, row.revision)
                .await;
            let Ok(PutIf::Written(mine)) = put else {
                return;
            };
            row = mine;
        }
        while let Some((first, last)) = row.value.next_range(2) {
            let next = self.redrive(of, &row.value, first, last).await;
            let Some(now) = self.put_merged(me, of, next, row.revision).await else {
                return;
            };
            row = now;
            if !matches!(&row.value.state, ParkState::Redriving { owner, .. } if owner == me) {
                return;
            }
        }
        let from = row.value.from;
        for version in 1..from.get() {
            let key = LetterKey::event(of.clone(), Version::new(version));
            self.insist(|| self.rows.letter_delete(&self.at, &key))
                .await;
        }
        let _ = self
            .insist(|| self.rows.park_delete(&self.at, of, row.revision))
            .await;
        self.hit("released");
    }

    /// Handles a page of versions, and returns the row to put.
    async fn redrive(
        &self,
        of: &StreamId,
        row: &ParkRow,
        first: Version,
        last: Version,
    ) -> ParkRow {
        let job = row.request().and_then(|request| request.job);
        let range = (first, last);
        let page = self
            .insist(|| self.rows.discards_of(&self.at, of, range, None))
            .await;
        let discards: BTreeMap<_, _> = page.rows.into_iter().collect();
        let mut version = first;
        while version <= last {
            let name = of.id().to_owned();
            if let Some(discard) = discards.get(&version).filter(|row| row.value.is_in_force()) {
                let (passed, seen) = (discard.value.passed(), discard.revision);
                let _ = self
                    .insist(|| {
                        self.rows
                            .discard_replace(&self.at, of, version, passed.clone(), seen)
                    })
                    .await;
                self.seen().passed.insert((name, version.get()));
            } else if self.seen().bad.contains(&(name.clone(), version.get())) {
                self.letter(of.id(), version.get()).await;
                return row.failed(&self.failure(version));
            } else {
                let mut seen = self.seen();
                let discarded = seen.passed.contains(&(name.clone(), version.get()));
                assert!(!discarded, "{of} {version} is handled after its discard");
                seen.handled.push((name, version.get(), job, row.id));
            }
            version = version.next();
        }
        row.advanced(last.next())
    }

    async fn serve_ask(&self, key: &LetterKey, ask: Stored<crate::control::AskRow>) {
        let letter = self.insist(|| self.rows.letter_head(&self.at, key)).await;
        let LetterKey::Event {
            stream: of,
            version,
        } = key
        else {
            return;
        };
        if letter.is_some_and(|letter| letter.value.id == ask.value.letter) {
            let name = of.id().to_owned();
            if let Some(job) = ask.value.job {
                assert!(
                    !self.seen().aborted.contains(&job),
                    "{job} asks although it is aborted"
                );
            }
            if self.seen().bad.contains(&(name.clone(), version.get())) {
                self.letter(of.id(), version.get()).await;
                self.hit("letter failed again");
            } else {
                let id = ParkId::from_u128(ask.value.letter.as_u128());
                self.seen()
                    .handled
                    .push((name, version.get(), ask.value.job, id));
                self.insist(|| self.rows.letter_delete(&self.at, key)).await;
                self.hit("letter redriven");
            }
        }
        let _ = self
            .insist(|| self.rows.ask_delete(&self.at, key, ask.revision))
            .await;
    }

    // ---- processes that die
}
