//! How an authority lies in the store: key `authority/<kind>/<id>`, value a version byte and a protobuf message.

use prost::Message;
use rustls_pki_types::CertificateDer;
use spiffe::proto::v1;
use spiffe::time::{Lifetime, Timestamp};
use spiffe::x509_svid::{MAX_CERTIFICATE_BYTES, MAX_CHAIN};

use super::{Authority, Chain, Kind, Public, State, TokenKey};

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
    format!("{PREFIX}{}/{}", authority.kind().name(), authority.id)
}

/// The value of `authority`.
pub fn encode(authority: &Authority) -> Vec<u8> {
    let (chain, public_key) = match &authority.public {
        Public::X509(chain) => (chain.iter().map(|certificate| certificate.to_vec().into()).collect(), Vec::new()),
        Public::Jwt(key) | Public::Wit(key) => (Vec::new(), key.spki().to_vec()),
    };
    let message = v1::AuthorityRecord {
        id: authority.id.to_string(),
        owner: authority.owner.to_string(),
        kind: authority.kind().name().to_owned(),
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
        chain,
        public_key: public_key.into(),
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
    let kind = Kind::from_name(&message.kind).ok_or(RecordError::Field("kind"))?;
    let state = match message.state {
        1 => State::Prepared,
        2 => State::Active,
        3 => State::Retired,
        _ => return Err(RecordError::Field("state")),
    };
    if message.not_after < message.not_before {
        return Err(RecordError::Field("lifetime"));
    }
    let public = public(kind, message.chain, &message.public_key)?;
    Ok(Authority {
        id: message.id.into(),
        owner: message.owner.into(),
        state,
        tainted: message.tainted,
        lifetime: Lifetime {
            not_before: Timestamp::from_unix(message.not_before),
            not_after: Timestamp::from_unix(message.not_after),
        },
        prepared_at: Timestamp::from_unix(message.prepared_at),
        activated_at: (message.activated_at > 0).then(|| Timestamp::from_unix(message.activated_at)),
        public,
    })
}

/// The public half: a chain or a key, as the kind asks for, and not both.
fn public(kind: Kind, chain: Vec<bytes::Bytes>, public_key: &[u8]) -> Result<Public, RecordError> {
    let only_a_key = |make: fn(TokenKey) -> Public| {
        if !chain.is_empty() {
            return Err(RecordError::Field("chain"));
        }
        TokenKey::new(public_key).map(make).ok_or(RecordError::Field("public key"))
    };
    match kind {
        Kind::Jwt => return only_a_key(Public::Jwt),
        Kind::Wit => return only_a_key(Public::Wit),
        Kind::X509 if !public_key.is_empty() => return Err(RecordError::Field("public key")),
        Kind::X509 => {}
    }
    let fits = |certificate: &bytes::Bytes| (1..=MAX_CERTIFICATE_BYTES).contains(&certificate.len());
    if chain.len() > MAX_CHAIN || !chain.iter().all(fits) {
        return Err(RecordError::Field("chain"));
    }
    let mut chain = chain.into_iter().map(|certificate| CertificateDer::from(certificate.to_vec()));
    let own = chain.next().ok_or(RecordError::Field("chain"))?;
    Ok(Public::X509(Chain::new(own, chain)))
}

/// Whether `text` is the name of an authority or of a key: 32 lower-case hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::super::keys::{KeySpec, SigningKey};
    use super::*;

    fn of(public: Public) -> Authority {
        Authority {
            state: State::Active,
            tainted: true,
            activated_at: Some(Timestamp::from_unix(170)),
            ..Authority::prepared(
                "00112233445566778899aabbccddeeff".into(),
                "ca-1".into(),
                public,
                Lifetime { not_before: Timestamp::from_unix(40), not_after: Timestamp::from_unix(4000) },
                Timestamp::from_unix(100),
            )
        }
    }

    fn authority() -> Authority {
        of(Public::X509(Chain::new(CertificateDer::from(vec![1, 2]), [CertificateDer::from(vec![3])])))
    }

    fn key_of(spec: KeySpec) -> TokenKey {
        TokenKey::new(&SigningKey::generate(spec).unwrap().public_key()).unwrap()
    }

    #[test]
    fn an_authority_survives_the_store() {
        let mut retired = authority();
        retired.state = State::Retired;
        retired.activated_at = None;
        let (jwt, wit) = (of(Public::Jwt(key_of(KeySpec::P256))), of(Public::Wit(key_of(KeySpec::P384))));
        assert_eq!(key(&jwt), "authority/jwt/00112233445566778899aabbccddeeff");
        for authority in [authority(), retired, jwt, wit] {
            assert_eq!(decode(&encode(&authority)), Ok(authority));
        }
        assert_eq!(key(&authority()), "authority/x509/00112233445566778899aabbccddeeff");
    }

    /// Written by version 0.1.0, which knew X.509 alone.
    #[test]
    fn a_record_of_the_first_release_is_read() {
        let id = "00112233445566778899aabbccddeeff";
        let mut first: Vec<u8> = vec![1, 0x0a, 32];
        first.extend(id.as_bytes());
        first.extend(b"\x12\x04ca-1\x1a\x04x509\x20\x02\x28\x01\x30\x28\x38\xa0\x1f\x40\x64\x48\xaa\x01");
        first.extend(b"\x52\x02\x01\x02\x52\x01\x03");
        assert_eq!(decode(&first), Ok(authority()));
        assert_eq!(encode(&authority()), first, "and it reads ours");
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
        assert_eq!(wrong(|a| a.lifetime.not_after = Timestamp::from_unix(1)), Err(RecordError::Field("lifetime")));
    }

    #[test]
    fn a_chain_and_a_key_do_not_mix() {
        let mixed = |kind: &str, chain: &[&[u8]], public_key: &[u8]| {
            let mut message = v1::AuthorityRecord::decode(&encode(&authority())[1..]).unwrap();
            message.kind = kind.into();
            message.chain = chain.iter().map(|der| der.to_vec().into()).collect();
            message.public_key = public_key.to_vec().into();
            decode(&[vec![VERSION], message.encode_to_vec()].concat()).map(|authority| authority.kind())
        };
        let key = key_of(KeySpec::P256);
        assert_eq!(mixed("jwt", &[], key.spki()), Ok(Kind::Jwt));
        assert_eq!(mixed("x509", &[&[1]], b""), Ok(Kind::X509));
        assert_eq!(mixed("x509", &[], b""), Err(RecordError::Field("chain")));
        assert_eq!(mixed("x509", &[&[1]], key.spki()), Err(RecordError::Field("public key")));
        for kind in ["jwt", "wit"] {
            assert_eq!(mixed(kind, &[], b""), Err(RecordError::Field("public key")));
            assert_eq!(mixed(kind, &[], b"junk"), Err(RecordError::Field("public key")));
            assert_eq!(mixed(kind, &[&[1]], key.spki()), Err(RecordError::Field("chain")));
        }
        assert_eq!(mixed("ssh", &[&[1]], b""), Err(RecordError::Field("kind")));
    }
}
