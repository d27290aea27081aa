//! The certificate authority.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod attest;
pub mod audit;
pub mod authority;
pub mod config;
pub mod connected;
pub mod health;
pub mod issuance;
pub mod metrics;
pub mod orders;
pub mod prune;
pub mod store;
pub mod view;
