//! What one SVID costs on one core, against the limit that the same run measures: one verification (of the CSR) and one
//! signature with ring alone, both P-256. Run: `cargo bench -p ca-server --bench issuing`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement: it prints, reads the clock and may stop"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ca_server::authority::ca::CaPlan;
use ca_server::authority::issuer::{Issuer, Serial};
use ca_server::authority::keys::{KeySpec, SigningKey};
use ca_server::authority::upstream::certify;
use ca_server::issuance::{Profile, Request, for_entry};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use spiffe::csr::{self, ProvenKey};
use spiffe::entry::{DnsName, EntryId, KeyType, RegistrationEntry};
use spiffe::id::TrustDomain;
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;

const ROUNDS: usize = 21;
const EACH: u32 = 500;
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

/// The median over the rounds of the time of one call, in microseconds.
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            (0..EACH).for_each(|_| work());
            begin.elapsed() / EACH
        })
        .collect();
    times.sort();
    times[ROUNDS / 2].as_secs_f64() * 1e6
}

fn main() {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let message = [7_u8; 420];
    let signature = pair.sign(&random, &message).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref().to_vec());

    let domain = TrustDomain::parse("example.org").unwrap();
    let hour = Duration::from_secs(3600);
    let key = Arc::new(SigningKey::generate(KeySpec::P256).unwrap());
    let plan = CaPlan::new(domain.clone(), Serial::from_random([3; 16]), hour * 24, None, NOW);
    let issuer = Issuer::new(certify(&key, "ca-1".into(), &plan, None, NOW).unwrap(), key).unwrap();
    let profile = Profile { trust_domain: domain.clone(), default_ttl: hour, max_ttl: hour, agent_ttl: hour };
    let entry = RegistrationEntry {
        id: EntryId::parse("web-1").unwrap(),
        spiffe_id: domain.member("/ns/default/sa/web").unwrap(),
        parent: domain.agent_id("join_token", "1").unwrap(),
        selectors: Selectors::parse(&["unix:uid:1000".to_owned()]).unwrap(),
        x509_ttl: None,
        jwt_ttl: None,
        wit_ttl: None,
        jti: false,
        dns_names: vec![DnsName::parse("web.example.org").unwrap()],
        hint: String::new(),
        admin: false,
        federates_with: Vec::new(),
        expires_at: None,
        key_type: None,
        created_at: NOW,
        rule: None,
    };
    let request = csr::create(&spiffe::crypto::generate_key(KeyType::P256).unwrap()).unwrap();

    let sign = median(|| {
        black_box(pair.sign(&random, black_box(&message)).unwrap());
    });
    let verify = median(|| public.verify(black_box(&message), signature.as_ref()).unwrap());
    let proof = median(|| {
        black_box(ProvenKey::from_csr(black_box(&request)).unwrap());
    });
    let whole = median(|| {
        let key = ProvenKey::from_csr(black_box(&request)).unwrap();
        let serial = Serial::from_random(spiffe::crypto::random().unwrap());
        let request = Request { key, serial, window: issuer.window(), now: NOW };
        black_box(issuer.sign(for_entry(&entry, request, &profile).unwrap()).unwrap());
    });
    let limit = sign + verify;
    println!("ring alone: sign {sign:.1} us, verify {verify:.1} us, together {limit:.1} us");
    println!("CSR to proven key: {proof:.1} us");
    println!("plan, sign, parse back and compare: {:.1} us", whole - proof);
    println!(
        "CSR to SVID: {whole:.1} us, {:.0} a second on one core, ratio to the limit {:.2}",
        1e6 / whole,
        limit / whole
    );
}
