//! PEM as RFC 7468 section 2 wants it written: 64 characters a line. The one writer of the house.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

/// A certificate, DER in, PEM out.
pub fn certificate(der: &[u8]) -> String {
    // No secret: it need not be wiped.
    std::mem::take(&mut *write("CERTIFICATE", der))
}

/// A private key, PKCS#8 DER in, PEM out; wiped when it is dropped.
pub fn private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    write("PRIVATE KEY", pkcs8)
}

fn write(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(BASE64.encode(der));
    // Room for everything at once: a text that grows leaves pieces of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(base64.len() + base64.len() / 64 + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same_and_never_grows(der in prop::collection::vec(any::<u8>(), 1..400)) {
            let text = certificate(&der);
            prop_assert!(text.lines().all(|line| line.len() <= 64) && text.ends_with("-----END CERTIFICATE-----\n"));
            prop_assert_eq!(&*CertificateDer::from_pem_slice(text.as_bytes()).unwrap(), &der[..]);
            let key = private_key(&der);
            let read = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).unwrap();
            prop_assert_eq!(read.secret_pkcs8_der(), &der[..]);
            let base64 = der.len().div_ceil(3) * 4;
            prop_assert!(key.capacity() < base64 + base64 / 64 + 100, "it had its room from the start");
        }
    }
}
