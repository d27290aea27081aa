//! The signatures of JSON Web Signatures (RFC 7518 section 3): what ring verifies, and what our own keys sign.
//!
//! - ES512 has a name here and no verifier: ring has no P-521. Whoever shows such a signature is told so.
//! - An ECDSA signature is the two numbers side by side (RFC 7518 section 3.4), not DER.
//! - The algorithm has to fit the key: a token says how it was signed, the key says what may have signed it.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, RsaKeyPair, UnparsedPublicKey};

/// The algorithms that the JWT-SVID and WIT-SVID standards permit (JWT-SVID.md section 2.1, WIT-SVID.md section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 using SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 using SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 using SHA-512.
    Rs512,
    /// ECDSA using P-256 and SHA-256.
    Es256,
    /// ECDSA using P-384 and SHA-384.
    Es384,
    /// ECDSA using P-521 and SHA-512.
    Es512,
    /// RSASSA-PSS using SHA-256.
    Ps256,
    /// RSASSA-PSS using SHA-384.
    Ps384,
    /// RSASSA-PSS using SHA-512.
    Ps512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// The value of `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// The algorithm of that name, if the standards permit it: `none` and those with shared secrets they do not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The curves of elliptic-curve keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl Curve {
    /// The value of `crv` (RFC 7518 section 6.2.1.1).
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// How many bytes a coordinate has.
    pub const fn coordinate_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// A public key, cut up as a JWK has it (RFC 7518 section 6, RFC 8037 section 2). Numbers are big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// A point of an elliptic curve; both coordinates have the full length of the curve.
    Ec {
        /// The curve.
        curve: Curve,
        /// The first coordinate.
        x: Vec<u8>,
        /// The second one.
        y: Vec<u8>,
    },
    /// Ed25519, which no token is signed with.
    Ed25519 {
        /// The point.
        x: Vec<u8>,
    },
    /// RSA; numbers without leading zeros.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
}

impl PublicKey {
    /// What a key of this kind signs with when nothing else is said; `None`: no token.
    pub fn usual_algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Ec { curve: Curve::P256, .. } => Some(Algorithm::Es256),
            Self::Ec { curve: Curve::P384, .. } => Some(Algorithm::Es384),
            Self::Ec { curve: Curve::P521, .. } => Some(Algorithm::Es512),
            Self::Rsa { .. } => Some(Algorithm::Rs256),
            Self::Ed25519 { .. } => None,
        }
    }

    /// Whether a key of this kind can have signed by `algorithm`.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match self {
            Self::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            other => other.usual_algorithm() == Some(algorithm),
        }
    }

    /// Whether `signature` of `message` was made by `algorithm` and the private half of this key.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        if !self.fits(algorithm) {
            return Err(SignatureError::OtherAlgorithm(algorithm));
        }
        let verified = match self {
            Self::Ec { curve, x, y } => {
                let verifier = match curve {
                    Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
                    Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
                    Curve::P521 => return Err(SignatureError::Unsupported(algorithm)),
                };
                let point: Vec<u8> = std::iter::once(4).chain(x.iter().copied()).chain(y.iter().copied()).collect();
                UnparsedPublicKey::new(verifier, point).verify(message, signature)
            }
            Self::Rsa { n, e } => {
                let verifier = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return Err(SignatureError::OtherAlgorithm(algorithm)),
                };
                signature::RsaPublicKeyComponents { n, e }.verify(verifier, message, signature)
            }
            Self::Ed25519 { .. } => return Err(SignatureError::OtherAlgorithm(algorithm)),
        };
        verified.map_err(|_| SignatureError::Wrong)
    }
}

/// Why a signature is not accepted, or none was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The key is of another kind.
    #[error("the key is of a kind that does not sign by {0}")]
    OtherAlgorithm(Algorithm),
    /// We have no verifier for it.
    #[error("signatures by {0} cannot be verified here: use ES256, ES384 or an RSA algorithm")]
    Unsupported(Algorithm),
    /// It was not made by this key, or for something else.
    #[error("the signature is not that of the key")]
    Wrong,
    /// The private key cannot be used.
    #[error("the private key is not a PKCS#8 document of a P-256, P-384 or RSA key of 2048 to 4096 bits")]
    PrivateKey,
    /// The key did not sign.
    #[error("the key did not sign")]
    NotSigned,
}

/// A private key that signs tokens. ring does not wipe what it holds.
pub struct Signer {
    algorithm: Algorithm,
    key: Pair,
    random: SystemRandom,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    /// From PKCS#8, DER: ES256 for a P-256 key, ES384 for P-384, RS256 for RSA.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SignatureError> {
        let random = SystemRandom::new();
        let ecdsa = |kind| EcdsaKeyPair::from_pkcs8(kind, pkcs8, &random).map(Pair::Ecdsa).ok();
        let (algorithm, key) = if let Some(key) = ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING) {
            (Algorithm::Es256, key)
        } else if let Some(key) = ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING) {
            (Algorithm::Es384, key)
        } else {
            let key = RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| SignatureError::PrivateKey)?;
            (Algorithm::Rs256, Pair::Rsa(key))
        };
        Ok(Self { algorithm, key, random })
    }

    /// What it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        match &self.key {
            Pair::Ecdsa(key) => {
                let made = key.sign(&self.random, message).map_err(|_| SignatureError::NotSigned)?;
                Ok(made.as_ref().to_vec())
            }
            Pair::Rsa(key) => {
                let mut made = vec![0; key.public().modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &self.random, message, &mut made)
                    .map_err(|_| SignatureError::NotSigned)?;
                Ok(made)
            }
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_read_as_they_are_written() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
        }
        for refused in ["none", "None", "HS256", "EdDSA", "es256", ""] {
            assert_eq!(Algorithm::from_name(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_key_signs_by_its_own_algorithms_only() {
        let rsa = PublicKey::Rsa { n: vec![1], e: vec![3] };
        let p256 = PublicKey::Ec { curve: Curve::P256, x: vec![0; 32], y: vec![0; 32] };
        let p521 = PublicKey::Ec { curve: Curve::P521, x: vec![0; 66], y: vec![0; 66] };
        assert!(rsa.fits(Algorithm::Ps384) && !rsa.fits(Algorithm::Es256));
        assert!(p256.fits(Algorithm::Es256) && !p256.fits(Algorithm::Es384) && !p256.fits(Algorithm::Rs256));
        assert_eq!(p521.verify(Algorithm::Es512, b"", b""), Err(SignatureError::Unsupported(Algorithm::Es512)));
        assert_eq!(p256.verify(Algorithm::Es384, b"", b""), Err(SignatureError::OtherAlgorithm(Algorithm::Es384)));
        assert_eq!(p256.verify(Algorithm::Es256, b"m", &[0; 64]), Err(SignatureError::Wrong));
        assert!(!PublicKey::Ed25519 { x: vec![0; 32] }.fits(Algorithm::Es256));
    }
}
