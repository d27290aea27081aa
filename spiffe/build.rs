//! Compiles the protos in pure Rust, so that no protoc is needed, and keeps their descriptors: gRPC reflection
//! serves them, and a test walks them.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

/// Messages with keys, tokens or other secrets in them, as paths end: `src/proto/secrets.rs` says what of them is printed.
const SECRET: &[&str] = &[
    "X509SVID",
    "JWTSVID",
    "WITSVID",
    "ValidateJWTSVIDRequest",
    "AttestStart",
    "Token",
    "CreateJoinTokenResponse",
    "TlsCertificate",
    "DiscoveryResponse",
    "Resource",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let workload = protox::compile(["workload.proto"], ["proto"])?;
    let broker = protox::compile(["broker.proto"], ["proto"])?;
    let details = protox::compile(["details.proto"], ["proto"])?;
    let ours = protox::compile(["node.proto", "admin.proto", "record.proto", "agent.proto"], ["proto"])?;
    let envoy = protox::compile(["envoy/secret.proto", "envoy/tls.proto"], ["proto"])?;
    let istio = protox::compile(["istio/ca.proto"], ["proto"])?;
    fs::write(out.join("workload.bin"), workload.encode_to_vec())?;
    fs::write(out.join("broker.bin"), broker.encode_to_vec())?;
    fs::write(out.join("chancery.bin"), ours.encode_to_vec())?;
    fs::write(out.join("istio.bin"), istio.encode_to_vec())?;
    println!("cargo::rerun-if-changed=proto");
    // DER travels as Bytes, so that handing it to many streams copies nothing.
    for set in [workload, broker, details, ours, istio] {
        tonic_prost_build::configure().bytes(".").skip_debug(SECRET).compile_fds(set)?;
    }
    // In a folder of its own, with the tree of its packages: they name each other.
    let out = out.join("envoy");
    fs::create_dir_all(&out)?;
    let envoy_code = tonic_prost_build::configure().bytes(".").skip_debug(SECRET).out_dir(out).include_file("tree.rs");
    envoy_code.extern_path(".google.rpc", "crate::proto::details").compile_fds(envoy)?;
    Ok(())
}
