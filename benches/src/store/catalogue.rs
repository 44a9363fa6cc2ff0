//! The works: their operations, their measures and the goals.
use crate::table::{Bound, Goal};
use foldstream_dynamodb::PublishMode;

/// A work and its measures.
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) goals: &'static [Goal],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// Commands of one event, on streams that exist.
    Command { states: States, at_once: u64 },
    /// Commands of one event that have a command id, on streams that exist.
    CommandWithId { states: States },
    /// Commands of one event on cached states. The other side does the same without the check that
    /// each new event can be read back.
    EncodeCheck,
    /// Ten events of 80 bytes in one command. The other sides put ten items.
    TenEvents,
    /// Commands of one event in a publish mode, and the clearing of the markers that they leave.
    Mode(PublishMode),
    /// Loads of a whole stream. A load that ends early is an error.
    Load { commits: Commits, events_each: u64 },
    /// Loads of a stream with a snapshot over a wire that delays each answer by 5 ms.
    LoadWithSnapshot,
}

impl Kind {
    /// Returns the publish mode of the tables.
    pub(super) const fn mode(self) -> PublishMode {
        match self {
            Self::Mode(mode) => mode,
            _ => PublishMode::Stream,
        }
    }
}

/// The states that a repository keeps between commands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum States {
    /// No state is kept: every command loads its stream.
    None,
    Cached,
    /// The states are cached, and idle for so long that each is confirmed before an append.
    Idle,
}

/// The number of commits of a loaded stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Commits {
    These(u64),
    /// The number in [`Size::long`](super::Size::long).
    Long,
}

pub(super) const TRIPS: &str = "trips";
pub(super) const WRITE_UNITS: &str = "wcu";
pub(super) const READ_UNITS: &str = "rcu";
/// The write units of a stream's first command, which also lists the stream.
pub(super) const FIRST_WRITE_UNITS: &str = "wcu-first";
/// The write units of clearing a marker.
pub(super) const CLEAR_WRITE_UNITS: &str = "wcu-clear";
pub(super) const TIME_VS_LEAN: &str = "time-vs-lean";
pub(super) const TIME_VS_SAME_FACTS: &str = "time-vs-same-facts";
pub(super) const READ_UNITS_VS_LEAN: &str = "rcu-vs-lean";
pub(super) const READ_UNITS_VS_SAME_FACTS: &str = "rcu-vs-same-facts";
pub(super) const TIME_VS_UNCHECKED: &str = "time-vs-unchecked";
/// The number of round trips, in units of one query of the lean items.
pub(super) const ROUND_TRIPS: &str = "round-trips";

const fn at_most(measure: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit: "a command",
        bound: Bound::AtMost,
        goal,
        is_ratio: false,
    }
}

const fn ratio(measure: &'static str, unit: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit,
        bound: Bound::AtMost,
        goal,
        is_ratio: true,
    }
}

const fn vs_lean(goal: f64) -> Goal {
    ratio(TIME_VS_LEAN, "ms", goal)
}

const fn vs_same_facts(goal: f64) -> Goal {
    ratio(TIME_VS_SAME_FACTS, "ms", goal)
}

const fn units_vs_lean(goal: f64) -> Goal {
    ratio(READ_UNITS_VS_LEAN, "a load", goal)
}

const fn units_vs_same_facts(goal: f64) -> Goal {
    ratio(READ_UNITS_VS_SAME_FACTS, "a load", goal)
}

const fn round_trips(goal: f64) -> Goal {
    ratio(ROUND_TRIPS, "ms", goal)
}

pub(super) const WORKS: &[Work] = &[
    Work {
        name: "command-warm",
        kind: Kind::Command {
            states: States::Cached,
            at_once: 1,
        },
        goals: &[
            at_most(TRIPS, 1.0),
            at_most(WRITE_UNITS, 1.0),
            at_most(READ_UNITS, 0.0),
            vs_lean(0.60),
            vs_same_facts(0.55),
        ],
    },
    Work {
        name: "command-cold",
        kind: Kind::Command {
            states: States::None,
            at_once: 1,
        },
        goals: &[
            at_most(TRIPS, 2.0),
            at_most(WRITE_UNITS, 1.0),
            at_most(READ_UNITS, 1.0),
            vs_lean(1.10),
            vs_same_facts(1.05),
        ],
    },
    Work {
        name: "command-idle",
        kind: Kind::Command {
            states: States::Idle,
            at_once: 1,
        },
        goals: &[
            at_most(TRIPS, 2.0),
            at_most(WRITE_UNITS, 1.0),
            at_most(READ_UNITS, 1.0),
            vs_lean(1.10),
            vs_same_facts(1.05),
        ],
    },
    Work {
        name: "command-warm-16-at-once",
        kind: Kind::Command {
            states: States::Cached,
            at_once: 16,
        },
        goals: &[vs_lean(0.60), vs_same_facts(0.55)],
    },
    Work {
        name: "ten-events-in-one-command",
        kind: Kind::TenEvents,
        goals: &[
            at_most(WRITE_UNITS, 1.0),
            vs_lean(0.20),
            vs_same_facts(0.20),
        ],
    },
    Work {
        name: "encode-check",
        kind: Kind::EncodeCheck,
        goals: &[ratio(TIME_VS_UNCHECKED, "ms", 1.05)],
    },
    Work {
        name: "mode-stream",
        kind: Kind::Mode(PublishMode::Stream),
        goals: &[
            at_most(FIRST_WRITE_UNITS, 2.0),
            at_most(WRITE_UNITS, 1.0),
            at_most(CLEAR_WRITE_UNITS, 0.0),
        ],
    },
    Work {
        name: "mode-poller",
        kind: Kind::Mode(PublishMode::Poller),
        goals: &[
            at_most(FIRST_WRITE_UNITS, 3.0),
            at_most(WRITE_UNITS, 2.0),
            at_most(CLEAR_WRITE_UNITS, 2.0),
        ],
    },
    Work {
        name: "mode-both",
        kind: Kind::Mode(PublishMode::Both),
        goals: &[
            at_most(FIRST_WRITE_UNITS, 3.0),
            at_most(WRITE_UNITS, 2.0),
            at_most(CLEAR_WRITE_UNITS, 2.0),
        ],
    },
    Work {
        name: "command-with-id-warm",
        kind: Kind::CommandWithId {
            states: States::Cached,
        },
        goals: &[
            at_most(TRIPS, 2.0),
            at_most(WRITE_UNITS, 2.0),
            at_most(READ_UNITS, 0.0),
            round_trips(2.4),
        ],
    },
    Work {
        name: "command-with-id-cold",
        kind: Kind::CommandWithId {
            states: States::None,
        },
        goals: &[
            at_most(TRIPS, 4.0),
            at_most(WRITE_UNITS, 2.0),
            at_most(READ_UNITS, 2.0),
            round_trips(3.4),
        ],
    },
    Work {
        name: "load-1000-commits",
        kind: Kind::Load {
            commits: Commits::These(1_000),
            events_each: 1,
        },
        goals: &[
            vs_lean(1.20),
            vs_same_facts(0.95),
            units_vs_lean(1.18),
            units_vs_same_facts(0.80),
        ],
    },
    Work {
        name: "load-100-commits-of-ten",
        kind: Kind::Load {
            commits: Commits::These(100),
            events_each: 10,
        },
        goals: &[
            vs_lean(0.65),
            vs_same_facts(0.45),
            units_vs_lean(0.80),
            units_vs_same_facts(0.55),
        ],
    },
    Work {
        name: "load-10000-commits",
        kind: Kind::Load {
            commits: Commits::Long,
            events_each: 1,
        },
        goals: &[vs_lean(1.20), vs_same_facts(0.95)],
    },
    Work {
        name: "load-with-snapshot-5ms-away",
        kind: Kind::LoadWithSnapshot,
        goals: &[round_trips(1.3)],
    },
];
