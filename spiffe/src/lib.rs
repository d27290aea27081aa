//! The words of the field: SPIFFE IDs, selectors, registration entries, bundles, SVIDs, CSRs, time, and the
//! protos of our doors. No socket, no file, no task: everything here is a value, or a function of values.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod audience;
pub mod bundle;
pub mod crypto;
pub mod csr;
pub mod entry;
pub mod federation;
pub mod id;
pub mod jose;
pub mod jwt_svid;
pub mod mtls;
pub mod pem;
pub mod proto;
pub mod rule;
pub mod selector;
pub mod settings;
pub mod time;
pub mod token;
pub mod wit_svid;
pub mod wpt;
pub mod x509_svid;

#[cfg(test)]
mod test_certificates;
#[cfg(test)]
mod test_tokens;
