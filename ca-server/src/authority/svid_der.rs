//! The bytes of an SVID, written straight into DER: the profile of X509-SVID.md as `issuance` plans it, and nothing not in
//! it. It is the hot path: what does not change from one SVID to the next is a constant.
//!
//! rcgen is the judge: a test has it write the same plan, and every byte has to be the same. What comes out is parsed
//! back and compared before anybody gets it (`issuer`).

use spiffe::time::Timestamp;

use super::issuer::{ORGANIZATION, SvidPlan};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Version 3, tagged.
const VERSION: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];
/// `id-at-organizationName` and `id-at-commonName`.
const ORGANIZATION_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0a];
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
/// The extensions that are the same in every SVID, whole. Key usage: critical, digitalSignature.
const KEY_USAGE: &[u8] =
    &[0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x07, 0x80];
/// Extended key usage: serverAuth, clientAuth.
const EXTENDED_KEY_USAGE: &[u8] = &[
    0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x16, 0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07,
    0x03, 0x01, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
];
/// Basic constraints: critical, no CA.
const BASIC_CONSTRAINTS: &[u8] = &[0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00];
/// The names of the other three.
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];
const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
/// Context tags of a GeneralName and of an AuthorityKeyIdentifier.
const URI: u8 = 0x86;
const DNS_NAME: u8 = 0x82;
const KEY_IDENTIFIER: u8 = 0x80;
/// Context tag of the extensions.
const EXTENSIONS: u8 = 0xa3;

/// What an issuer puts into every SVID.
#[derive(Debug)]
pub(super) struct Frame {
    /// The AlgorithmIdentifier that it signs with, DER.
    pub(super) algorithm: &'static [u8],
    /// Its name, DER.
    pub(super) issuer: Box<[u8]>,
    /// Its key identifier.
    pub(super) key_identifier: Box<[u8]>,
}

/// The TBSCertificate of `plan` (RFC 5280 section 4.1).
pub(super) fn to_be_signed(plan: &SvidPlan, subject_key_identifier: &[u8], frame: &Frame) -> Vec<u8> {
    let mut out = Vec::with_capacity(768);
    wrap(&mut out, SEQUENCE, |out| {
        out.extend_from_slice(VERSION);
        wrap(out, INTEGER, |out| out.extend_from_slice(plan.serial.bytes()));
        out.extend_from_slice(frame.algorithm);
        out.extend_from_slice(&frame.issuer);
        wrap(out, SEQUENCE, |out| {
            time(out, plan.lifetime.not_before);
            time(out, plan.lifetime.not_after);
        });
        wrap(out, SEQUENCE, |out| {
            attribute(out, ORGANIZATION_NAME, ORGANIZATION);
            if let Some(name) = plan.common_name() {
                attribute(out, COMMON_NAME, name);
            }
        });
        out.extend_from_slice(plan.key.spki_der());
        wrap(out, EXTENSIONS, |out| wrap(out, SEQUENCE, |out| extensions(out, plan, subject_key_identifier, frame)));
    });
    out
}

/// The whole certificate: what was signed, by what, and the signature.
pub(super) fn certificate(to_be_signed: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(to_be_signed.len() + signature.len() + 32);
    wrap(&mut out, SEQUENCE, |out| {
        out.extend_from_slice(to_be_signed);
        out.extend_from_slice(algorithm);
        wrap(out, BIT_STRING, |out| {
            // No unused bits.
            out.push(0);
            out.extend_from_slice(signature);
        });
    });
    out
}

fn extensions(out: &mut Vec<u8>, plan: &SvidPlan, subject_key_identifier: &[u8], frame: &Frame) {
    extension(out, AUTHORITY_KEY_IDENTIFIER, |out| {
        wrap(out, SEQUENCE, |out| wrap(out, KEY_IDENTIFIER, |out| out.extend_from_slice(&frame.key_identifier)));
    });
    extension(out, SUBJECT_ALTERNATIVE_NAME, |out| {
        wrap(out, SEQUENCE, |out| {
            wrap(out, URI, |out| out.extend_from_slice(plan.id.as_str().as_bytes()));
            for name in &plan.dns_names {
                wrap(out, DNS_NAME, |out| out.extend_from_slice(name.as_str().as_bytes()));
            }
        });
    });
    out.extend_from_slice(KEY_USAGE);
    out.extend_from_slice(EXTENDED_KEY_USAGE);
    extension(out, SUBJECT_KEY_IDENTIFIER, |out| {
        wrap(out, OCTET_STRING, |out| out.extend_from_slice(subject_key_identifier));
    });
    out.extend_from_slice(BASIC_CONSTRAINTS);
}

/// An extension that is not critical.
fn extension(out: &mut Vec<u8>, name: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
    wrap(out, SEQUENCE, |out| {
        out.extend_from_slice(name);
        wrap(out, OCTET_STRING, value);
    });
}

fn attribute(out: &mut Vec<u8>, name: &[u8], text: &str) {
    wrap(out, SET, |out| {
        wrap(out, SEQUENCE, |out| {
            out.extend_from_slice(name);
            wrap(out, UTF8_STRING, |out| out.extend_from_slice(text.as_bytes()));
        });
    });
}

/// UTCTime until the end of 2049, GeneralizedTime from 2050 on (RFC 5280 section 4.1.2.5).
fn time(out: &mut Vec<u8>, at: Timestamp) {
    let at = at.to_date_time();
    let year = at.year();
    let in_utc_time = (1950..2050).contains(&year);
    wrap(out, if in_utc_time { UTC_TIME } else { GENERALIZED_TIME }, |out| {
        if !in_utc_time {
            two_digits(out, year / 100);
        }
        let (month, day) = (i32::from(u8::from(at.month())), i32::from(at.day()));
        let (hour, minute, second) = (i32::from(at.hour()), i32::from(at.minute()), i32::from(at.second()));
        for number in [year % 100, month, day, hour, minute, second] {
            two_digits(out, number);
        }
        out.push(b'Z');
    });
}

fn two_digits(out: &mut Vec<u8>, number: i32) {
    for digit in [number / 10 % 10, number % 10] {
        out.push(b'0'.wrapping_add(u8::try_from(digit).unwrap_or(0)));
    }
}

/// A tag, the length of what `content` writes, and what it writes.
fn wrap(out: &mut Vec<u8>, tag: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    // Room for the short form; a longer length pushes the content back.
    out.push(0);
    let start = out.len();
    content(out);
    let length = out.len() - start;
    let bytes = length.to_be_bytes();
    let significant = bytes.iter().position(|byte| *byte != 0).map_or(&bytes[..0], |from| &bytes[from..]);
    match (u8::try_from(length), significant.len()) {
        (Ok(short @ 0..=0x7f), _) => out[start - 1] = short,
        (_, count) => {
            // At most eight.
            out[start - 1] = 0x80 | count as u8;
            out.splice(start..start, significant.iter().copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        let of = |length: usize| {
            let mut out = Vec::new();
            wrap(&mut out, OCTET_STRING, |out| out.resize(out.len() + length, 7));
            assert!(out.ends_with(&vec![7; length]));
            out.truncate(out.len() - length);
            out
        };
        assert_eq!(of(0), [0x04, 0x00]);
        assert_eq!(of(0x7f), [0x04, 0x7f]);
        assert_eq!(of(0x80), [0x04, 0x81, 0x80]);
        assert_eq!(of(0xff), [0x04, 0x81, 0xff]);
        assert_eq!(of(0x100), [0x04, 0x82, 0x01, 0x00]);
        assert_eq!(of(0x1_0000), [0x04, 0x83, 0x01, 0x00, 0x00]);
    }

    #[test]
    fn times_change_their_form_in_2050() {
        let of = |unix| {
            let mut out = Vec::new();
            time(&mut out, Timestamp::from_unix(unix));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(of(2_524_607_999), "\x17\x0d491231235959Z");
        assert_eq!(of(2_524_608_000), "\x18\x0f20500101000000Z");
    }
}
