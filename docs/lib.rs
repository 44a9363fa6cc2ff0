//! The code of the foldstream book.
//!
//! mdBook renders the chapters in `src/`. This crate, which is never published, compiles and runs
//! their code: each chapter is the documentation of one module, so that
//! `cargo test -p foldstream-book --doc` runs every example in it.
//!
//! The tutorial's hotel also lives in modules, because each chapter uses the code of the chapters
//! before. A test compares those modules with the chapters that show them.

pub mod hotel;

pub mod introduction {
    #![doc = include_str!("src/introduction.md")]
}
pub mod concepts {
    #![doc = include_str!("src/concepts.md")]
}
pub mod tutorial {
    //! The tutorial: from a first aggregate to a running service, in five chapters.

    pub mod aggregates {
        #![doc = include_str!("src/tutorial/aggregates.md")]
    }
    pub mod read_model {
        #![doc = include_str!("src/tutorial/read_model.md")]
    }
    pub mod http {
        #![doc = include_str!("src/tutorial/http.md")]
    }
    pub mod evolving {
        #![doc = include_str!("src/tutorial/evolving.md")]
    }
    pub mod testing {
        #![doc = include_str!("src/tutorial/testing.md")]
    }
}
pub mod sagas {
    #![doc = include_str!("src/sagas.md")]
}
pub mod replay {
    #![doc = include_str!("src/replay.md")]
}
pub mod operations {
    #![doc = include_str!("src/operations.md")]
}
/// The teaching adapter, and the chapter that builds it.
pub mod adapter {
    #![doc = include_str!("src/adapter.md")]
    mod map_event_store;
    pub use map_event_store::MapEventStore;
}
pub mod from_cqrs_es {
    #![doc = include_str!("src/from_cqrs_es.md")]
}
pub mod words_reference {
    #![doc = include_str!("src/words_reference.md")]
}
pub mod words_other_libraries {
    #![doc = include_str!("src/words_other_libraries.md")]
}
