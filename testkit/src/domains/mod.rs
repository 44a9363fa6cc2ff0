//! Sample domains that are small and complete.
//!
//! They are meant to be read, to be copied from, and to try tests on. The module needs the feature
//! `domains`.
//!
//! | domain | shows |
//! |---|---|
//! | [`cart`] | the fold of quantities, and commands that find nothing to do |
//! | [`loan`] | a workflow in which every step that is not allowed is a typed error |
//! | [`account`] | money: what is refused, and arithmetic that cannot overflow |
//!
//! Their tests show the testkit: scenarios, laws on random commands, and proofs over all sequences
//! of commands up to a length.
pub mod account;
pub mod cart;
pub mod loan;
