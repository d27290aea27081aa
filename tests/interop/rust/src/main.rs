//! Judges Chancery from outside with the public `spiffe` crate: watches X.509 contexts and JWT bundles, fetches and
//! validates JWT-SVIDs, acts as a broker, and prints one JSON line for each thing that it saw. Of X.509 the crate parses and checks the profile; that key and certificate belong together, and that each chain ends
//! at a root beside it, is checked here, since the crate leaves both to its user. See `../README.md`.

mod broker;
mod tokens;

use std::error::Error;
use std::time::Duration;

use futures_util::StreamExt as _;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use serde_json::json;
use spiffe::{WorkloadApiClient, X509Context, X509Source, X509Svid};
use x509_parser::prelude::{FromDer as _, X509Certificate};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "usage: interop-rust <mode> [--updates N] [--patient] [--timeout SECONDS]
  watch                                             X.509 contexts
  watch-bundles, watch-jwt-bundles                  X.509 bundles, JWT bundles
  jwt     --audience A,B [--id ID]                  JWT-SVIDs, validated here and by the Workload API
  broker  --pid N --socket PATH|--address HOST:PORT --peer ID [--audience A]
          the SVIDs, bundles and (with --audience) JWT-SVIDs of that process, from the Broker API of the peer";

#[derive(Default)]
struct Arguments {
    mode: String,
    audience: Vec<String>,
    id: Option<String>,
    pid: i32,
    socket: Option<String>,
    address: Option<String>,
    peer: String,
    updates: usize,
    /// Watch with `X509Source`, which connects again by itself, instead of with one bare stream.
    patient: bool,
    timeout: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Err(error) = run().await {
        eprintln!("spiffe-rust: {error}");
        let mut cause = error.source();
        while let Some(inner) = cause {
            eprintln!("  because: {inner}");
            cause = inner.source();
        }
        std::process::exit(1);
    }
}

async fn run() -> Outcome<()> {
    let arguments = parse(std::env::args().skip(1))?;
    let watching = async {
        match arguments.mode.as_str() {
            "watch" if arguments.patient => watch_source(arguments.updates).await,
            "watch" => watch_stream(arguments.updates).await,
            "watch-bundles" => watch_bundles(arguments.updates).await,
            "watch-jwt-bundles" => tokens::watch_bundles(arguments.updates).await,
            "jwt" => tokens::fetch(&arguments.audience, arguments.id.as_deref()).await,
            "broker" => broker::act(&arguments).await,
            _ => Err(USAGE.into()),
        }
    };
    if arguments.timeout == 0 {
        return watching.await;
    }
    tokio::time::timeout(Duration::from_secs(arguments.timeout), watching)
        .await
        .map_err(|_| format!("not all updates came within {} seconds", arguments.timeout))?
}

fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Arguments> {
    let mode = words.next().ok_or(USAGE)?;
    let mut arguments = Arguments { mode, updates: 1, timeout: 60, ..Arguments::default() };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--patient" => arguments.patient = true,
            "--audience" => arguments.audience = words.next().ok_or(USAGE)?.split(',').map(str::to_owned).collect(),
            "--id" => arguments.id = Some(words.next().ok_or(USAGE)?),
            "--pid" => arguments.pid = words.next().ok_or(USAGE)?.parse()?,
            "--socket" => arguments.socket = Some(words.next().ok_or(USAGE)?),
            "--address" => arguments.address = Some(words.next().ok_or(USAGE)?),
            "--peer" => arguments.peer = words.next().ok_or(USAGE)?,
            "--updates" => arguments.updates = words.next().ok_or(USAGE)?.parse()?,
            "--timeout" => arguments.timeout = words.next().ok_or(USAGE)?.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(arguments)
}

async fn watch_stream(updates: usize) -> Outcome<()> {
    let client = WorkloadApiClient::connect_env().await?;
    let mut contexts = client.stream_x509_contexts().await?.take(updates);
    let mut seen = 0;
    while let Some(context) = contexts.next().await {
        print(&context?)?;
        seen += 1;
    }
    if seen < updates {
        return Err(format!("the stream ended after {seen} updates").into());
    }
    Ok(())
}

async fn watch_bundles(updates: usize) -> Outcome<()> {
    let client = WorkloadApiClient::connect_env().await?;
    let mut bundles = client.stream_x509_bundles().await?.take(updates);
    let mut seen = 0;
    while let Some(bundles) = bundles.next().await {
        let counts: serde_json::Map<_, _> =
            bundles?.iter().map(|(domain, bundle)| (domain.to_string(), json!(bundle.authorities().len()))).collect();
        println!("{}", json!({ "client": "spiffe-rust", "bundles": counts }));
        seen += 1;
    }
    if seen < updates {
        return Err(format!("the stream ended after {seen} updates").into());
    }
    Ok(())
}

async fn watch_source(updates: usize) -> Outcome<()> {
    let source = X509Source::new().await?;
    let mut changes = source.updated();
    for seen in 0..updates {
        if seen > 0 {
            changes.changed().await?;
        }
        print(&*source.x509_context()?)?;
    }
    source.shutdown().await;
    Ok(())
}

fn print(context: &X509Context) -> Outcome<()> {
    let svids = context.svids().iter().map(|svid| describe(svid, context)).collect::<Outcome<Vec<_>>>()?;
    let bundles: serde_json::Map<_, _> = context
        .bundle_set()
        .iter()
        .map(|(trust_domain, bundle)| (trust_domain.to_string(), json!(bundle.authorities().len())))
        .collect();
    println!("{}", json!({ "client": "spiffe-rust", "svids": svids, "bundles": bundles }));
    Ok(())
}

fn describe(svid: &X509Svid, context: &X509Context) -> Outcome<serde_json::Value> {
    let id = svid.spiffe_id();
    let chain = svid.cert_chain().iter().map(|der| certificate(der.as_bytes())).collect::<Outcome<Vec<_>>>()?;
    let leaf = &chain[0];
    if public_half(svid.private_key().as_bytes())? != leaf.public_key().subject_public_key.data.as_ref() {
        return Err(format!("the key of {id} is not the key in its certificate").into());
    }
    let bundle = context.bundle_set().get(id.trust_domain()).ok_or(format!("no bundle beside {id}"))?;
    let roots = bundle.authorities().iter().map(|der| certificate(der.as_bytes())).collect::<Outcome<Vec<_>>>()?;
    if !ends_at(&chain, &roots) {
        return Err(format!("the chain of {id} does not end at a root of its bundle").into());
    }
    let serial = leaf.raw_serial();
    let serial = serial.strip_prefix(&[0]).unwrap_or(serial);
    Ok(json!({
        "spiffe_id": id.to_string(),
        "serial": serial.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "not_after": leaf.validity().not_after.timestamp(),
        "hint": svid.hint().unwrap_or_default(),
    }))
}

fn certificate(der: &[u8]) -> Outcome<X509Certificate<'_>> {
    match X509Certificate::from_der(der)? {
        ([], certificate) => Ok(certificate),
        _ => Err("bytes after a certificate".into()),
    }
}

/// Whether each certificate of `chain` is signed by the next one, and the last by one of `roots`.
fn ends_at(chain: &[X509Certificate<'_>], roots: &[X509Certificate<'_>]) -> bool {
    let signed_by = |lower: &X509Certificate<'_>, upper: &X509Certificate<'_>| {
        lower.issuer() == upper.subject() && lower.verify_signature(Some(upper.public_key())).is_ok()
    };
    chain.windows(2).all(|pair| signed_by(&pair[0], &pair[1]))
        && chain.last().is_some_and(|last| roots.iter().any(|root| signed_by(last, root)))
}

/// The public key of a PKCS#8 private key of one of the kinds that Chancery makes.
fn public_half(pkcs8: &[u8]) -> Outcome<Vec<u8>> {
    let random = ring::rand::SystemRandom::new();
    for curve in [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING] {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve, pkcs8, &random) {
            return Ok(pair.public_key().as_ref().to_vec());
        }
    }
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
        .map_err(|error| format!("the key is no PKCS#8 of P-256, P-384 or Ed25519: {error}"))?;
    Ok(pair.public_key().as_ref().to_vec())
}
