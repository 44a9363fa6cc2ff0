//! The templates in `deploy/`: their tables are those of this adapter, and each role's policy
//! allows what the role's work requests, and nothing else.
mod template;
mod tables;
mod mapping;
mod actions;
mod policy;
mod app;
mod publisher;
mod streams_reader;
mod processors;
mod administration;
mod least_privilege;
