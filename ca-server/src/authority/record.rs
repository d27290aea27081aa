//! How an authority lies in the store: key `authority/<kind>/<id>`, value a version byte and a protobuf message.

use prost::Message;
use rustls_pki_types::CertificateDer;
use spiffe::proto::v1;
use spiffe::time::{Lifetime, Timestamp};
use spiffe::x509_svid::{MAX_CERTIFICATE_BYTES, MAX_CHAIN};

use super::{Authority, Kind, State};

/// Every key of an authority begins with this.
pub const PREFIX: &str = "authority/";

const VERSION: u8 = 1;

/// Why a value of the store is no authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The version byte is another.
    #[error("authority record has version {0}, this program reads version 1: run the program that wrote it")]
    Version(u8),
    /// Not the message it should be, or no bytes at all.
    #[error("authority record cannot be read: the store is damaged, restore it from a backup")]
    Malformed,
    /// A field has a value that no authority has.
    #[error("authority record has a wrong {0}: the store is damaged, restore it from a backup")]
    Field(&'static str),
}

/// The key under which `authority` lies.
pub fn key(authority: &Authority) -> String {
    format!("{PREFIX}{}/{}", authority.kind.name(), authority.id)
}

/// The value of `authority`.
pub fn encode(authority: &Authority) -> Vec<u8> {
    let message = v1::AuthorityRecord {
        id: authority.id.to_string(),
        owner: authority.owner.to_string(),
        kind: authority.kind.name().to_owned(),
        state: match authority.state {
            State::Prepared => 1,
            State::Active => 2,
            State::Retired => 3,
        },
        tainted: authority.tainted,
        not_before: authority.lifetime.not_before.unix(),
        not_after: authority.lifetime.not_after.unix(),
        prepared_at: authority.prepared_at.unix(),
        activated_at: authority.activated_at.map_or(0, Timestamp::unix),
        chain: authority.chain.iter().map(|certificate| certificate.to_vec().into()).collect(),
        public_key: bytes::Bytes::new(),
    };
    let mut value = Vec::with_capacity(1 + message.encoded_len());
    value.push(VERSION);
    value.extend(message.encode_to_vec());
    value
}

/// Reads what [`encode`] wrote.
pub fn decode(value: &[u8]) -> Result<Authority, RecordError> {
    let (version, message) = value.split_first().ok_or(RecordError::Malformed)?;
    if *version != VERSION {
        return Err(RecordError::Version(*version));
    }
    let message = v1::AuthorityRecord::decode(message).map_err(|_| RecordError::Malformed)?;
    if !is_id(&message.id) {
        return Err(RecordError::Field("id"));
    }
    if message.owner.is_empty() {
        return Err(RecordError::Field("owner"));
    }
    if message.kind != Kind::X509.name() {
        return Err(RecordError::Field("kind"));
    }
    let state = match message.state {
        1 => State::Prepared,
        2 => State::Active,
        3 => State::Retired,
        _ => return Err(RecordError::Field("state")),
    };
    if message.not_after < message.not_before {
        return Err(RecordError::Field("lifetime"));
    }
    let fits = |certificate: &bytes::Bytes| (1..=MAX_CERTIFICATE_BYTES).contains(&certificate.len());
    if !(1..=MAX_CHAIN).contains(&message.chain.len()) || !message.chain.iter().all(fits) {
        return Err(RecordError::Field("chain"));
    }
    Ok(Authority {
        id: message.id.into(),
        owner: message.owner.into(),
        kind: Kind::X509,
        state,
        tainted: message.tainted,
        lifetime: Lifetime {
            not_before: Timestamp::from_unix(message.not_before),
            not_after: Timestamp::from_unix(message.not_after),
        },
        prepared_at: Timestamp::from_unix(message.prepared_at),
        activated_at: (message.activated_at > 0).then(|| Timestamp::from_unix(message.activated_at)),
        chain: message.chain.into_iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect(),
    })
}

/// Whether `text` is the name of an authority or of a key: 32 lower-case hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Authority {
        Authority {
            state: State::Active,
            tainted: true,
            activated_at: Some(Timestamp::from_unix(170)),
            ..Authority::prepared(
                "00112233445566778899aabbccddeeff".into(),
                "ca-1".into(),
                vec![CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])],
                Lifetime { not_before: Timestamp::from_unix(40), not_after: Timestamp::from_unix(4000) },
                Timestamp::from_unix(100),
            )
        }
    }

    #[test]
    fn an_authority_survives_the_store() {
        let mut retired = authority();
        retired.state = State::Retired;
        retired.activated_at = None;
        for authority in [authority(), retired] {
            assert_eq!(decode(&encode(&authority)), Ok(authority));
        }
        assert_eq!(key(&authority()), "authority/x509/00112233445566778899aabbccddeeff");
    }

    #[test]
    fn damage_is_refused_and_named() {
        let wrong = |change: fn(&mut Authority)| {
            let mut authority = authority();
            change(&mut authority);
            decode(&encode(&authority))
        };
        assert_eq!(decode(&[]), Err(RecordError::Malformed));
        assert_eq!(decode(&[2, 0]), Err(RecordError::Version(2)));
        assert_eq!(decode(&[1, 0xff, 0xff]), Err(RecordError::Malformed));
        assert_eq!(decode(&[1]), Err(RecordError::Field("id")));
        assert_eq!(wrong(|a| a.id = "../x".into()), Err(RecordError::Field("id")));
        assert_eq!(wrong(|a| a.owner = "".into()), Err(RecordError::Field("owner")));
        assert_eq!(wrong(|a| a.chain = [].into()), Err(RecordError::Field("chain")));
        assert_eq!(wrong(|a| a.lifetime.not_after = Timestamp::from_unix(1)), Err(RecordError::Field("lifetime")));
    }
}
