//! A folder of delivered files, and one who reads it again and again: certificate and key have to fit each time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::parse_x509_certificate;

use crate::binary::wait_for;

/// Reads the files of one folder until [`Checker::end`].
#[derive(Debug)]
pub struct Checker {
    versions: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<Seen>>,
}

/// What it saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often it looked.
    pub looks: u64,
    /// How many certificates there were.
    pub certificates: BTreeSet<Vec<u8>>,
    /// What was wrong, each time.
    pub wrong: Vec<String>,
}

impl Checker {
    /// Starts to read `chain` and `key` in `folder`, which may be one file.
    ///
    /// # Panics
    /// When they do not come.
    #[track_caller]
    pub fn start(folder: &Path, chain: &'static str, key: &'static str) -> Self {
        wait_for(60, || folder.join(key).exists().then_some(())).expect("files are delivered");
        let (versions, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let reading = std::thread::spawn({
            let (folder, versions, stop) = (folder.to_owned(), Arc::clone(&versions), Arc::clone(&stop));
            move || read(&folder, [chain, key], (&versions, &stop))
        });
        Self { versions, stop, reading: Some(reading) }
    }

    /// How many certificates it has seen.
    pub fn versions(&self) -> u64 {
        self.versions.load(Ordering::SeqCst)
    }

    /// Ends it, and says how many certificates there were.
    ///
    /// # Panics
    /// When something was wrong.
    #[track_caller]
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let seen = self.reading.take().expect("it ends once").join().expect("it ends well");
        assert!(
            seen.wrong.is_empty(),
            "{} of {} looks were wrong: {:?}",
            seen.wrong.len(),
            seen.looks,
            seen.wrong.first()
        );
        seen.certificates.len() as u64
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn read(folder: &Path, files: [&str; 2], (versions, stop): (&AtomicU64, &AtomicBool)) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::SeqCst) {
        seen.looks += 1;
        match look(folder, files) {
            Ok(certificate) => _ = seen.certificates.insert(certificate),
            Err(wrong) => seen.wrong.push(wrong),
        }
        versions.store(seen.certificates.len() as u64, Ordering::SeqCst);
        pause();
    }
    seen
}

/// Others live on this machine too.
#[expect(clippy::disallowed_methods, reason = "between two looks at a condition, not instead of one")]
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// The certificate that is there now, if its key is beside it.
fn look(folder: &Path, [chain, key]: [&str; 2]) -> Result<Vec<u8>, String> {
    let error = |error: &dyn std::fmt::Display| error.to_string();
    let version: PathBuf = std::fs::read_link(folder.join("..data")).map_err(|e| error(&e))?;
    let file = |name: &str| std::fs::read(folder.join(&version).join(name)).map_err(|e| format!("{name}: {e}"));
    let certificate = CertificateDer::from_pem_slice(&file(chain)?).map_err(|e| error(&e))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&file(key)?).map_err(|e| error(&e))?;
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_pkcs8_der(), &random);
    let pair = pair.map_err(|e| error(&e))?;
    let (_, parsed) = parse_x509_certificate(&certificate).map_err(|e| error(&e))?;
    if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key().as_ref() {
        return Err(format!("the key of {} belongs to another certificate", version.display()));
    }
    Ok(certificate.to_vec())
}
