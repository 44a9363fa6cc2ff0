//! The templates in `deploy/`: their tables are those of this adapter, and each role's policy
//! allows what the role's work requests, and nothing else. The Kubernetes example agrees with the
//! reader's times.
mod template;
mod tables;
mod mapping;
mod kubernetes;
mod actions;
mod policy;
mod app;
mod publisher;
mod streams_reader;
mod processors;
mod replayer;
mod administration;
mod least_privilege;
