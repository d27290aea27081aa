//! The node agent: works out who a local process is, keeps its SVIDs fresh, and serves them.
//!
//! The server talks to `client`; `node` keeps the agent's own identity; `cache` decides who needs what, when; a
//! workload knocks at `api`, and `attestor` says who it is; `deliver` writes files for those that cannot knock. `app` joins
//! them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod app;
pub mod attestor;
pub mod cache;
pub mod client;
pub mod config;
pub mod deliver;
pub mod health;
pub mod metrics;
pub mod node;
pub mod status;

#[cfg(test)]
mod test_house;
#[cfg(test)]
mod test_tokens;
