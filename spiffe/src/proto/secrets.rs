//! Messages with secrets in them: what of them is printed (`Debug`), and that a private key is wiped.
//!
//! - Private keys, tokens and evidence are never printed, nor is anything in which they are packed. `build.rs` has the same
//!   list of messages.

use std::fmt;

use zeroize::Zeroize as _;

use super::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
use super::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use super::{broker, v1, workload};

macro_rules! printed {
    ($($message:ty { $($field:ident),* })*) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        })*
    };
}

printed! {
    workload::X509svid { spiffe_id, hint }
    workload::Jwtsvid { spiffe_id, hint }
    workload::Witsvid { spiffe_id, hint }
    workload::ValidateJwtsvidRequest { audience }
    broker::X509svid { spiffe_id, hint }
    broker::Jwtsvid { spiffe_id, hint }
    v1::AttestStart { attestor }
    v1::Token { spiffe_id, expires_at }
    v1::CreateJoinTokenResponse { id }
    TlsCertificate {}
    DiscoveryResponse { version_info, nonce }
    Resource { name, version }
}

impl Drop for workload::Witsvid {
    /// Wipes the private key: of each copy of the message, those that streams keep to compare with among them.
    fn drop(&mut self) {
        self.wit_svid_key.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let secret = "hush-hush";
        let (text, bytes) = (|| secret.to_owned(), || bytes::Bytes::from(secret));
        let x509 = workload::X509svid {
            spiffe_id: "spiffe://example.org/web".into(),
            x509_svid_key: bytes(),
            ..workload::X509svid::default()
        };
        let mut wit = workload::Witsvid::default();
        (wit.wit_svid, wit.wit_svid_key) = (text(), text());
        let jwt = workload::Jwtsvid { svid: text(), ..Default::default() };
        let printed = [
            format!("{:?}", workload::X509svidResponse { svids: vec![x509], ..Default::default() }),
            format!("{:?}", workload::WitsvidResponse { svids: vec![wit] }),
            format!("{:?}", workload::JwtsvidResponse { svids: vec![jwt] }),
            format!("{:?}", workload::ValidateJwtsvidRequest { svid: text(), ..Default::default() }),
            format!("{:?}", v1::AttestStart { evidence: bytes(), ..Default::default() }),
            format!("{:?}", v1::Token { token: text(), ..Default::default() }),
            format!("{:?}", v1::CreateJoinTokenResponse { token: text(), ..Default::default() }),
            format!("{:?}", DiscoveryResponse { resources: vec![bytes()], ..Default::default() }),
            format!("{:?}", Resource { resource: bytes(), ..Default::default() }),
        ];
        assert!(printed[0].contains("spiffe://example.org/web"), "{}", printed[0]);
        for text in printed {
            assert!(!text.contains("hush"), "{text}");
        }
    }
}
