//! Repairs watermarks and snapshots after the events table was restored from a backup.
//!
//! Without `--apply` the tool reports what it would do and changes nothing. Streams that came back
//! with a hole are listed and never changed, and `--export` writes their items to a file. The
//! tables and the endpoint come from the environment, as everywhere in this crate. Stop all
//! publishers and writers first: the runbook is in the crate's README.
use clap::{Args, Parser};
use foldstream::{
    StreamId, Timestamp,
    control::{Finding, RestoreCursor, RestoreRepair, WritesSinceRestore},
};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig};
use futures::TryStreamExt as _;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufWriter, Write as _},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

/// Repairs watermarks and snapshots after the events table was restored from a backup. Reports what
/// it would do; with --apply it does it. Stop all publishers and writers first.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    written: Written,
    /// Change the tables. Without it, only report what would be changed.
    #[arg(long)]
    apply: bool,
    /// Also examine the snapshots of all streams of this aggregate type, published or not. May be
    /// given several times.
    #[arg(long = "aggregate", value_name = "TYPE")]
    aggregates: Vec<String>,
    /// Streams per second, at most. Each costs one to five small reads. A listing by type takes
    /// 1,000 at a time.
    #[arg(long, value_name = "STREAMS", default_value = "100")]
    rate: NonZeroU32,
    /// Stop after this number of streams, and print the cursor to resume from.
    #[arg(long, value_name = "STREAMS")]
    limit: Option<u64>,
    /// Resume where an earlier call stopped: the cursor that it printed.
    #[arg(long, value_name = "CURSOR")]
    resume: Option<RestoreCursor>,
    /// Also search the whole events table for streams with holes. Costs its size in read units;
    /// --rate then limits items.
    #[arg(long)]
    holes: bool,
    /// Write all items of every stream with a hole to this new file, as they are stored, one line
    /// of JSON each.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

impl Options {
    /// Returns the most streams that the next page may have, or `None` if the limit was reached.
    fn budget(&self, looked_at: u64) -> Option<NonZeroU32> {
        let left = self
            .limit
            .map_or(u64::MAX, |limit| limit.saturating_sub(looked_at));
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        NonZeroU32::new(left.min(self.rate.get()))
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Written {
    /// Nothing has been appended to the restored table yet.
    #[arg(long)]
    nothing_written: bool,
    /// Commits recorded at or after this time (RFC 3339, as in 2026-01-31T12:00:00Z) were appended
    /// after the restore.
    #[arg(long, value_name = "TIME")]
    written_since: Option<Timestamp>,
}
impl Written {
    fn writes(&self) -> WritesSinceRestore {
        self.written_since
            .map_or(WritesSinceRestore::NoneYet, WritesSinceRestore::Since)
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(&options)));
    match done {
        Ok(Left(0)) => ExitCode::SUCCESS,
        Ok(Left(streams)) => {
            eprintln!("{streams} streams were left as they are: see above");
            ExitCode::from(2)
        }
        Err(error) => {
            let error: &dyn std::error::Error = &*error;
            let chain = std::iter::successors(Some(error), |e| e.source());
            let text: Vec<_> = chain.map(ToString::to_string).collect();
            eprintln!("failed: {}", text.join(": "));
            ExitCode::FAILURE
        }
    }
}

/// The number of streams that could not be repaired.
struct Left(u64);

async fn run(options: &Options) -> Result<Left, Failure> {
    let dynamodb = DynamoDb::connect(DynamoDbConfig::from_env()?).await?;
    let mut broken = Broken::new(&dynamodb, options.export.as_deref())?;
    let restore = RestoreRepair::new(
        Arc::new(dynamodb.event_store()),
        Arc::new(dynamodb.control_store()),
        options.written.writes(),
    )
    .with_snapshots(Arc::new(dynamodb.snapshot_store()))
    .with_aggregates(options.aggregates.clone());

    let mut cursor = options.resume.clone();
    let (mut looked_at, mut repaired, mut left) = (0, 0, 0);
    loop {
        let started = Instant::now();
        let Some(budget) = options.budget(looked_at) else {
            break;
        };
        let page = if options.apply {
            restore.repair(cursor.as_ref(), budget).await
        } else {
            restore.check(cursor.as_ref(), budget).await
        };
        let page = page.inspect_err(|_| say_where(cursor.as_ref()))?;
        for finding in &page.findings {
            match finding {
                Finding::Corrupt { stream, .. } => {
                    let line = finding.to_string();
                    left += u64::from(broken.note(stream, &line).await?);
                }
                _ => {
                    println!("{finding}");
                    repaired += u64::from(finding.is_repaired());
                    left += u64::from(!finding.is_repaired());
                }
            }
        }
        looked_at += u64::from(page.streams);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        let due = Duration::from_secs_f64(f64::from(page.streams) / f64::from(options.rate.get()));
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
    }
    say_where(cursor.as_ref());
    if options.holes {
        left += search(&dynamodb, options.rate, &mut broken).await?;
    }
    broken.finish()?;
    let done = if options.apply {
        "repaired"
    } else {
        "would be repaired (--apply does it)"
    };
    println!(
        "{looked_at} streams looked at, {} things {done}, {left} left",
        repaired
    );
    Ok(Left(left))
}

/// Searches the whole events table, and returns the number of further streams with holes.
async fn search(
    dynamodb: &DynamoDb,
    rate: NonZeroU32,
    broken: &mut Broken<'_>,
) -> Result<u64, Failure> {
    let mut holes = dynamodb.holes();
    let mut found = 0;
    loop {
        let started = Instant::now();
        let Some(page) = holes.next_page(rate).await? else {
            return Ok(found);
        };
        for hole in page {
            let line = hole.to_string();
            found += u64::from(broken.note(&hole.stream, &line).await?);
        }
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(started.elapsed())).await;
    }
}

/// The streams with holes. Each is reported and exported once.
struct Broken<'a> {
    dynamodb: &'a DynamoDb,
    known: BTreeSet<StreamId>,
    export: Option<(&'a Path, BufWriter<File>)>,
    items: u64,
}

impl<'a> Broken<'a> {
    fn new(dynamodb: &'a DynamoDb, export: Option<&'a Path>) -> Result<Self, Failure> {
        let export = match export {
            None => None,
            Some(path) => {
                // An earlier call's export is never overwritten, since its items may be deleted by
                // now.
                let file = File::create_new(path)
                    .map_err(|e| format!("the file {} cannot be made: {e}", path.display()))?;
                Some((path, BufWriter::new(file)))
            }
        };
        Ok(Self {
            dynamodb,
            known: BTreeSet::new(),
            export,
            items: 0,
        })
    }

    /// Reports and exports a stream. Returns true if the stream was not known yet.
    async fn note(&mut self, stream: &StreamId, line: &str) -> Result<bool, Failure> {
        if !self.known.insert(stream.clone()) {
            return Ok(false);
        }
        println!("{line}");
        if let Some((_, file)) = &mut self.export {
            let mut items = self.dynamodb.items(stream);
            while let Some(item) = items.try_next().await? {
                writeln!(file, "{item}")?;
                self.items += 1;
            }
        }
        Ok(true)
    }

    /// Flushes the export to the disk. Only then may its streams be called exported.
    fn finish(self) -> Result<(), Failure> {
        let (items, streams) = (self.items, self.known.len());
        if let Some((path, file)) = self.export {
            let file = file.into_inner().map_err(|e| e.into_error())?;
            file.sync_all()?;
            println!(
                "exported {items} items of {streams} streams to {}",
                path.display()
            );
        }
        Ok(())
    }
}

fn say_where(cursor: Option<&RestoreCursor>) {
    if let Some(cursor) = cursor {
        println!("go on with: --resume '{cursor}'");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["foldstream-after-restore"], arguments].concat())
    }

    #[test]
    fn it_must_be_said_whether_anything_was_written() {
        assert!(parse(&[]).is_err());
        assert!(
            parse(&[
                "--nothing-written",
                "--written-since",
                "2026-01-31T12:00:00Z"
            ])
            .is_err()
        );
        let options = parse(&["--written-since", "2026-01-31T12:00:00Z"]).unwrap();
        let time = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(options.written.writes(), WritesSinceRestore::Since(time));
        let options = parse(&["--nothing-written"]).unwrap();
        assert_eq!(options.written.writes(), WritesSinceRestore::NoneYet);
        assert!(!options.apply);
    }
}
