//! The limit of issuing: the work with ring alone that nobody can leave out, in microseconds of CPU time for one SVID.
//! Measured on every core at once, as a server works: two threads that share a core slow each other.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, UnparsedPublicKey,
};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

/// CSRs of different keys.
pub(crate) fn csrs(count: usize) -> Result<Vec<Vec<u8>>> {
    let csr = |_| Ok(spiffe::csr::create(&spiffe::crypto::generate_key(spiffe::entry::KeyType::P256)?)?);
    (0..count).map(csr).collect()
}

/// One verification and one signature for each of these CSRs.
pub(crate) fn of_x509(csrs: &Arc<Vec<Vec<u8>>>) -> Result<f64> {
    let csrs = Arc::clone(csrs);
    on_every_core(move || {
        let mut sign = signer(&ECDSA_P256_SHA256_ASN1_SIGNING, 420)?;
        median(csrs.len(), |number| {
            let (_, csr) = X509CertificationRequest::from_der(csrs.get(number).context("csr")?)?;
            let info = &csr.certification_request_info;
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &info.subject_pki.subject_public_key.data);
            if key.verify(info.raw, &csr.signature_value.data).is_err() {
                bail!("a CSR does not verify");
            }
            sign()
        })
    })
}

/// One signature, as long as header and claims of the tokens that are asked for.
pub(crate) fn of_jwt() -> Result<f64> {
    on_every_core(|| {
        let mut sign = signer(&ECDSA_P256_SHA256_FIXED_SIGNING, 300)?;
        median(500, |_| sign())
    })
}

fn on_every_core(work: impl Fn() -> Result<f64> + Clone + Send + 'static) -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..cores).map(|_| std::thread::spawn(work.clone())).collect();
    let mut sum = 0.0;
    for thread in threads {
        sum += thread.join().map_err(|_| anyhow::anyhow!("a thread ended in a panic"))??;
    }
    Ok(sum / cores as f64)
}

/// Signs that many bytes.
fn signer(kind: &'static EcdsaSigningAlgorithm, bytes: usize) -> Result<impl FnMut() -> Result<()>> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).ok().context("no key")?;
    let key = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).ok().context("key")?;
    let to_be_signed = vec![7; bytes];
    Ok(move || {
        std::hint::black_box(key.sign(&random, &to_be_signed).ok().context("no signature")?);
        Ok(())
    })
}

/// What one of `each` pieces of work costs this thread in microseconds, as the median of several rounds.
fn median(each: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut rounds = Vec::new();
    for _ in 0..15 {
        let started = thread_cpu()?;
        (0..each).try_for_each(&mut work)?;
        rounds.push((thread_cpu()? - started).as_secs_f64() * 1e6 / each as f64);
    }
    rounds.sort_by(f64::total_cmp);
    rounds.get(rounds.len() / 2).copied().context("no rounds")
}

fn thread_cpu() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().context("schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}
