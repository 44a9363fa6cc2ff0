//! The rules that are checked at each call of a port, and at the end.
use super::{
    process::{Process, point},
    world::{NAME, TOPIC, World},
};
use foldstream::ports::{ControlStore, MessageBus, RangeQuery};
use foldstream_testkit::faults::Call;
use futures::FutureExt;
use serde_json::Value;
use std::collections::BTreeMap;

/// Checks what a call has done.
pub(super) fn after(process: &Process, call: &Call<'_>) {
    let world = &process.world;
    match call {
        Call::Put { row, .. } => {
            let (partition, sort) = (row.key.partition.as_str(), row.key.sort.as_str());
            let value = || serde_json::from_slice::<Value>(&row.value).unwrap();
            match partition.split('/').next() {
                Some("proc") => processor(process, &value()),
                Some("run") if partition == "run/lease" => lease(process, sort, &value()),
                Some("run") => run(process, sort, &value()),
                Some("seg") => segment(process, (partition, sort), &value()),
                _ => {}
            }
        }
        Call::Get(key) => {
            let generation = key.partition.strip_prefix("pos/accounts/");
            let generation = generation.and_then(|rest| rest.split('/').next()?.parse().ok());
            if let Some(generation) = generation {
                let moment = world.facts().moment();
                *process.read.lock().unwrap() = (moment, generation);
            }
        }
        Call::Scan { .. } => begins_to_scan(process),
        _ => {}
    }
    let is_written = matches!(
        call,
        Call::Put { .. } | Call::Delete { .. } | Call::DeleteGroup { .. }
    );
    if is_written && let Some(point) = point(call) {
        world.hit(format!("{} {point}", process.kind.name()));
    }
}

fn lease(process: &Process, run: &str, value: &Value) {
    let epoch = value["e"].as_u64().unwrap();
    let before = process
        .world
        .facts()
        .leases
        .insert(run.into(), epoch)
        .unwrap_or(0);
    let mut held = process.lease.lock().unwrap();
    if value["o"].is_string() {
        *held = Some((run.into(), epoch));
    } else {
        *held = None;
    }
    drop(held);
    if epoch > before {
        process
            .world
            .note(|| format!("{} takes the lease, epoch {epoch}", process.who));
        if before > 0 {
            process.world.hit("lease taken over");
        }
    }
}

/// Checks a row of a run that was just written.
fn run(process: &Process, id: &str, value: &Value) {
    let world = &process.world;
    world.note(|| format!("{} writes run {id}: {value}", process.who));
    let mut wrong = Vec::new();
    {
        let mut facts = world.facts();
        let before = facts.runs.insert(id.into(), value.clone());
        let before = before.unwrap_or_default();
        let old = |field: &str| before[field].clone();
        if before["e"].as_u64() > value["e"].as_u64() {
            wrong.push("its epoch goes back".into());
        }
        if !old("h").is_null() && old("h") != value["h"] {
            wrong.push("its hand-over changes".into());
        }
        let is_over = old("s") == "done" || (old("s") == "cancelled" && value["s"] != "done");
        if is_over && old("s") != value["s"] {
            wrong.push(format!("it was {}", old("s")));
        }
        let built = u32::try_from(value["p"][0]["g"].as_u64().unwrap()).unwrap();
        if value["s"] == "scanning" && old("s") != "scanning" {
            let last = facts.all_last();
            facts.before_scan.insert(id.into(), last);
            if value["h"].is_null() {
                wrong.push("the scan begins without a hand-over".into());
            }
        }
        if value["s"] == "catch_up" && old("s") != "catch_up" {
            let needed = facts.before_scan.get(id).cloned().unwrap_or_default();
            let behind = facts.behind(built, &needed);
            if !behind.is_empty() {
                wrong.push(format!("the scan has left out {behind:?}"));
            }
            let segments = facts.segments.iter().filter(|((of, _), _)| of == id);
            if segments.into_iter().any(|(_, row)| row["d"] != true) {
                wrong.push("a segment is not done".into());
            }
        }
    }
    for wrong in wrong {
        world.violated(format!("{} writes run {id}: {wrong}", process.who));
    }
}

/// Checks the row of a segment that was just written: one process builds, that of the last epoch.
fn segment(process: &Process, (partition, number): (&str, &str), value: &Value) {
    let world = &process.world;
    let run = partition.trim_start_matches("seg/").to_owned();
    let mut wrong = Vec::new();
    {
        let mut facts = world.facts();
        let key = (run.clone(), number.to_owned());
        let before = facts.segments.insert(key, value.clone());
        let before = before.unwrap_or_default();
        if before["e"].as_u64() > value["e"].as_u64() {
            wrong.push("its epoch goes back");
        }
        if before["d"] == true && value["d"] != true {
            wrong.push("it was done");
        }
        let of_run = facts.runs.get(&run).cloned().unwrap_or_default();
        let is_over = of_run["s"] == "cancelled" || of_run["s"] == "done";
        let named = facts.proc.as_ref().map(|proc| proc["r"] == run.as_str());
        if named != Some(true) && !is_over {
            wrong.push("the processor is not of this run");
        }
        if value["e"].as_u64() > of_run["e"].as_u64() {
            wrong.push("the run is not claimed");
        }
    }
    for wrong in wrong {
        let who = &process.who;
        world.violated(format!("{who} writes segment {number} of {run}: {wrong}"));
    }
}

fn begins_to_scan(process: &Process) {
    let held = process.lease.lock().unwrap().clone();
    let Some((run, _)) = held else { return };
    let has_hand_over = {
        let facts = process.world.facts();
        facts.runs.get(&run).is_some_and(|run| !run["h"].is_null())
    };
    if !has_hand_over {
        let who = &process.who;
        process
            .world
            .violated(format!("{who} scans before the hand-over"));
    }
}

/// Checks the row of the processor that was just written.
fn processor(process: &Process, value: &Value) {
    let world = &process.world;
    world.note(|| format!("{} writes proc {value}", process.who));
    let mut wrong = Vec::new();
    let switch;
    {
        let mut facts = world.facts();
        let before = facts.proc.replace(value.clone()).unwrap_or_default();
        if before == *value {
            // The request came twice.
            return;
        }
        let number = |of: &Value| of.as_u64().and_then(|n| u32::try_from(n).ok());
        let active = number(&value["a"]).unwrap();
        if facts.served.is_empty() {
            facts.serves(active);
        }
        let is_other = value["r"].is_string() && before["r"].is_string();
        if is_other && value["r"] != before["r"] {
            wrong.push(format!("another run than {} works on it", before["r"]));
        }
        if let Some(run) = value["r"].as_str() {
            let row = facts.runs.get(run).cloned().unwrap_or_default();
            let built = number(&row["p"][0]["g"]);
            let is_next = value["st"] == "catch_up";
            let named = number(if is_next { &value["n"] } else { &value["t"] });
            // A later holder of the lease may have allocated another one meanwhile.
            let is_older = built > named && !is_next;
            if built != named && !is_older {
                wrong.push(format!("the row of its run is {row}"));
            }
            if let Some(named) = named {
                let of = facts.allocated.entry(named).or_insert_with(|| run.into());
                if of != run {
                    wrong.push(format!("generation {named} is that of {of}"));
                }
            }
        }
        let rises = number(&value["t"]) > number(&before["t"]);
        if value["st"] == "preparing" && !rises {
            wrong.push("its highest number does not rise".into());
        }
        switch = (before["a"] != value["a"] && !before.is_null()).then(|| {
            facts.serves(active);
            before.clone()
        });
        if before["r"].is_string() && value["r"].is_null() && switch.is_none() {
            let run = before["r"].as_str().unwrap_or_default();
            let row = facts.runs.get(run).cloned().unwrap_or_default();
            if row["s"] != "cancelled" {
                wrong.push(format!("it leaves a run that is {}", row["s"]));
            }
        }
    }
    if let Some(before) = switch {
        wrong.extend(switched(world, &before, value));
    }
    for wrong in wrong {
        world.violated(format!("{} writes proc {value}: {wrong}", process.who));
    }
}

/// Checks a switch: the generation has caught up, and has what it has committed.
fn switched(world: &World, before: &Value, value: &Value) -> Vec<String> {
    world.hit("switch");
    let mut wrong = Vec::new();
    if before["n"] != value["a"] || before["st"] != "catch_up" {
        wrong.push(format!("it was {before}"));
    }
    let active = u32::try_from(value["a"].as_u64().unwrap()).unwrap();
    let run = {
        let facts = world.facts();
        let run = before["r"].as_str().and_then(|run| facts.runs.get(run));
        run.cloned().unwrap_or_default()
    };
    let group = World::group(active);
    let committed = world.bus.committed(&group, TOPIC);
    let committed = committed.now_or_never().unwrap().unwrap();
    let committed: BTreeMap<u32, u64> = committed
        .into_iter()
        .map(|(of, at)| (of.partition, at.map_or(0, |at| at.get())))
        .collect();
    for (number, end) in run["u"][TOPIC].as_array().into_iter().flatten().enumerate() {
        let number = u32::try_from(number).unwrap();
        let (end, at) = (end.as_u64().unwrap(), committed.get(&number).copied());
        if at.unwrap_or(0) < end {
            wrong.push(format!("{at:?} of partition {number} is before {end}"));
        }
    }
    let facts = world.facts();
    let mut needed = BTreeMap::new();
    let passed = facts.published.iter().filter(|record| {
        let at = committed.get(&record.partition.partition).copied();
        record.offset < at.unwrap_or(0)
    });
    for record in passed {
        if facts.relevant[&record.id].contains(&record.version) {
            let last = needed.entry(record.id.clone()).or_insert(0);
            *last = record.version.max(*last);
        }
    }
    let behind = facts.behind(active, &needed);
    if !behind.is_empty() {
        wrong.push(format!("the new model lacks {behind:?}"));
    }
    wrong
}

/// Checks that the active model is not further behind the topic than disturbances explain.
pub(super) fn moves_on(world: &World, patience: std::time::Duration) {
    let (active, behind) = {
        let facts = world.facts();
        let now = tokio::time::Instant::now();
        let mut needed = BTreeMap::new();
        for record in &facts.published {
            if now - record.at >= patience && facts.relevant[&record.id].contains(&record.version) {
                let last = needed.entry(record.id.clone()).or_insert(0);
                *last = record.version.max(*last);
            }
        }
        (facts.active(), facts.behind(facts.active(), &needed))
    };
    if !behind.is_empty() {
        world.violated(format!("generation {active} serves, and {behind:?}"));
    }
}

/// Checks the rules that hold once everything is quiet: the active model is the direct fold of all
/// events.
pub(super) async fn at_the_end(world: &World) {
    let wrong = {
        let facts = world.facts();
        let active = facts.active();
        let found = facts.models.get(&active).map(|of| of.rows.clone());
        let found = found.unwrap_or_default();
        let mut expected = facts.relevant.clone();
        expected.retain(|_, versions| !versions.is_empty());
        (found != expected).then(|| format!("generation {active} is {found:?}, not {expected:?}"))
    };
    if let Some(wrong) = wrong {
        world.violated(wrong);
    }
    let active = world.facts().active();
    let group = World::group(active);
    let committed = world.bus.committed(&group, TOPIC).await.unwrap();
    let ends = world.ends().await;
    for (of, at) in committed {
        let (at, end) = (at.map_or(0, |at| at.get()), ends[&of.partition]);
        if at != end {
            world.violated(format!("{group} is at {at} of {of}, which ends at {end}"));
        }
    }
}

/// Checks that nothing is left of the generations that do not serve.
pub(super) async fn after_the_deletion(world: &World) {
    let (active, top) = {
        let facts = world.facts();
        let top = facts.proc.as_ref().and_then(|proc| proc["t"].as_u64());
        (facts.active(), u32::try_from(top.unwrap_or(1)).unwrap())
    };
    let mut left = rows(world, &format!("old/{NAME}")).await;
    for generation in (1..=top).filter(|of| *of != active) {
        let mut partitions = vec![
            format!("boot/{NAME}/{generation}"),
            format!("park/{NAME}/{generation}"),
        ];
        for number in 0..64 {
            partitions.push(format!("pos/{NAME}/{generation}/{number}"));
        }
        for partition in partitions {
            left.extend(rows(world, &partition).await);
        }
        let group = World::group(generation);
        for (of, at) in world.bus.committed(&group, TOPIC).await.unwrap() {
            left.extend(at.map(|at| format!("{group} at {at:?} of {of}")));
        }
        let facts = world.facts();
        let model = facts.models.get(&generation);
        let rows = model.filter(|model| !model.rows.is_empty());
        left.extend(rows.map(|model| format!("model {generation}: {:?}", model.rows)));
    }
    if !left.is_empty() {
        world.violated(format!("of old generations there is still {left:?}"));
    }
    if rows(world, &format!("boot/{NAME}/{active}"))
        .await
        .is_empty()
    {
        world.violated(format!("the rows of generation {active} are gone"));
    }
}

async fn rows(world: &World, partition: &str) -> Vec<String> {
    let page = world.control.range(&RangeQuery::new(partition)).await;
    let rows = page.unwrap().rows.into_iter();
    rows.map(|row| format!("{partition} {}", row.key.sort))
        .collect()
}

/// Checks the answer of a wait: the generation has served after its position was read, and has the
/// version.
pub(super) fn answered(process: &Process, generation: u32, id: &str, version: u64) {
    let (world, read) = (&process.world, *process.read.lock().unwrap());
    let (has, is_active) = {
        let facts = world.facts();
        let all = facts.relevant.get(id).into_iter().flatten();
        let needed = all.copied().filter(|of| *of <= version).max().unwrap_or(0);
        let model = facts.models.get(&generation);
        let (served, next) = facts.served(generation);
        let is_active = served && next.is_none_or(|next| read.0 < next.moment);
        (model.map_or(0, |model| model.last(id)) >= needed, is_active)
    };
    if !has || !is_active || read.1 != generation {
        let wrong = format!("has it: {has}, serves: {is_active}, read {read:?}");
        world.violated(format!(
            "a wait for version {version} of {id} returns generation {generation}: {wrong}"
        ));
    }
}
