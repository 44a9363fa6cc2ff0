//! Live suites: the contract suites and the end-to-end tests on Apache Kafka and DynamoDB Local.
//!
//! Every test is ignored by default, since it needs Docker or running servers: see CONTRIBUTING.md.

mod containers;
