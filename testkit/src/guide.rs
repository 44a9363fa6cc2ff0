#![doc = include_str!("../docs/testing.md")]
#![doc = "```"]
#![doc = include_str!("../docs/account.rs")]
#![doc = "```"]

pub mod aggregates {
    #![doc = include_str!("../docs/aggregates.md")]
}
pub mod projectors {
    #![doc = include_str!("../docs/projectors.md")]
}
pub mod listeners {
    #![doc = include_str!("../docs/listeners.md")]
}
pub mod pipelines {
    #![doc = include_str!("../docs/pipelines.md")]
}
#[cfg(feature = "proptest")]
pub mod laws {
    #![doc = include_str!("../docs/laws.md")]
}
pub mod faults {
    #![doc = include_str!("../docs/faults.md")]
}
#[cfg(feature = "mocks")]
pub mod mocks {
    #![doc = include_str!("../docs/mocks.md")]
}
pub mod layers {
    #![doc = include_str!("../docs/layers.md")]
}
#[cfg(feature = "contract")]
pub mod contracts {
    #![doc = include_str!("../docs/contracts.md")]
}
#[cfg(feature = "embedded")]
pub mod embedded {
    #![doc = include_str!("../docs/embedded.md")]
}
#[cfg(feature = "containers")]
pub mod containers {
    #![doc = include_str!("../docs/containers.md")]
}
pub mod golden_files {
    #![doc = include_str!("../docs/golden_files.md")]
}
pub mod compared {
    #![doc = include_str!("../docs/compared.md")]
}
pub mod evolving {
    #![doc = include_str!("../docs/evolving.md")]
}
