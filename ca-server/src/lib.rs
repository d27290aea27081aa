//! The certificate authority: attests node agents, signs SVIDs from their CSRs, and pushes every change.
//!
//! Writers commit to the store; a follower folds commits into a View; every reader reads only the View. See
//! `ARCHITECTURE.md` for the rooms and the journeys through them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod app;
pub mod attest;
pub mod audit;
pub mod authority;
pub mod config;
pub mod connected;
pub mod federation;
pub mod health;
pub mod https;
pub mod issuance;
pub mod kube;
pub mod metrics;
pub mod origin;
pub mod own_svid;
pub mod prune;
pub mod rotate;
pub mod store;
pub mod view;
pub mod web;
