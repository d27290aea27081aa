//! What JSON Web Tokens are made of (RFC 7515, 7517, 7518, 7519, 7638), as far as SVIDs use it.
//!
//! - `jwk`: public keys.
//! - `jws`: the compact serialization, taken apart and put together.
//! - `private`: the JWK of a private key.
//! - `json`: JSON in which no member occurs twice.

mod json;
mod jwk;
mod jws;
mod private;

pub(crate) use json::ObjectOnly;
pub use json::{JsonError, parse_object};
pub use jwk::{Jwk, JwkError, JwkMembers, MAX_KID_BYTES};
pub use jws::{Header, JwsError, MAX_TOKEN_BYTES, Parsed, write};
pub use private::{private_jwk, public_jwk};

pub use crate::crypto::jws::{Algorithm, Curve, PublicKey, SignatureError, Signer};
