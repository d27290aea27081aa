//! placeholder
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "this is test code: what cannot be had fails the test"
)]

pub mod binary;
