//! The Workload API as a workload sees it (SPIFFE_Workload_API.md): this process asks the agent on its machine who
//! it is.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use spiffe::id::SpiffeId;
use spiffe::proto::workload as wire;
use spiffe::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::time::{Timestamp, renew_at};
use spiffe::x509_svid::X509Svid;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::connect::{ownership, unix_channel};
use crate::exit::{Failure, Outcome};
use crate::folders::Folders;
use crate::output::plain;
use crate::refusal;

/// Where workloads are told to look for the Workload API (SPIFFE_Workload_Endpoint.md section 4).
pub(crate) const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// A connection to the Workload API.
#[derive(Debug)]
pub(crate) struct Workload {
    client: SpiffeWorkloadApiClient<Channel>,
}

/// The path in `address`: `unix:///run/...`, `unix:/run/...`, or the bare path.
pub(crate) fn socket_path(address: &str) -> Outcome<PathBuf> {
    let rest = match address.strip_prefix("unix:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None if address.contains("://") => {
            let text =
                format!("{} is no unix socket: write it like unix:///run/chancery/workload.sock", plain(address));
            return Err(Failure::Usage(text));
        }
        None => address,
    };
    if rest.is_empty() {
        return Err(Failure::Usage(format!("{} names no socket", plain(address))));
    }
    Ok(rest.into())
}

impl Workload {
    /// Connects to `address`, or to where the folders of this user have it.
    pub(crate) async fn connect(address: Option<&str>) -> Outcome<Self> {
        let path = match address {
            Some(address) => socket_path(address)?,
            None => Folders::of_this_process().workload_socket(Path::exists),
        };
        let channel = unix_channel(&path).await.map_err(|error| {
            let place = path.display();
            match error.kind() {
                std::io::ErrorKind::PermissionDenied => Failure::Refused(format!(
                    "permission denied: you may not use the socket of the Workload API {place}{}: have it opened to \
                     this user, or name another socket with --workload-socket or {SOCKET_VARIABLE}",
                    ownership(&path)
                )),
                _ => Failure::Unreachable(format!(
                    "no agent answers at {place} ({error}): start one with `chancery agent run` or `chancery dev`, or \
                     name its socket with --workload-socket or {SOCKET_VARIABLE}"
                )),
            }
        })?;
        Ok(Self { client: SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(64 << 20) })
    }

    /// The identities of this process, now and at each change.
    pub(crate) async fn x509(&mut self) -> Result<Streaming<wire::X509svidResponse>, Status> {
        Ok(self.client.fetch_x509svid(request(wire::X509svidRequest {})).await?.into_inner())
    }

    /// A JWT-SVID for each identity of this process, or for `spiffe_id` alone.
    pub(crate) async fn jwt(&mut self, audience: Vec<String>, spiffe_id: String) -> Result<Vec<wire::Jwtsvid>, Status> {
        let request = request(wire::JwtsvidRequest { audience, spiffe_id });
        Ok(self.client.fetch_jwtsvid(request).await?.into_inner().svids)
    }

    /// The WIT-SVIDs of this process, or that of `spiffe_id` alone, now and at each change.
    pub(crate) async fn wit(&mut self, spiffe_id: String) -> Result<Streaming<wire::WitsvidResponse>, Status> {
        Ok(self.client.fetch_witsvid(request(wire::WitsvidRequest { spiffe_id })).await?.into_inner())
    }

    /// Has a token judged that somebody has shown to this process.
    pub(crate) async fn validate(
        &mut self,
        audience: String,
        svid: String,
    ) -> Result<wire::ValidateJwtsvidResponse, Status> {
        let request = request(wire::ValidateJwtsvidRequest { audience, svid });
        Ok(self.client.validate_jwtsvid(request).await?.into_inner())
    }

    /// The keys for JWT-SVIDs that this process gets, now and at each change.
    pub(crate) async fn jwt_bundles(&mut self) -> Result<Streaming<wire::JwtBundlesResponse>, Status> {
        Ok(self.client.fetch_jwt_bundles(request(wire::JwtBundlesRequest {})).await?.into_inner())
    }

    /// The keys for WIT-SVIDs that this process gets, now and at each change.
    pub(crate) async fn wit_bundles(&mut self) -> Result<Streaming<wire::WitBundlesResponse>, Status> {
        Ok(self.client.fetch_wit_bundles(request(wire::WitBundlesRequest {})).await?.into_inner())
    }

    /// What to say to who asked for `id` alone and was refused: a process that is not `id` may well be others.
    pub(crate) async fn failure_of(&mut self, status: &Status, id: Option<&SpiffeId>) -> Failure {
        let (Some(id), Code::PermissionDenied) = (id, status.code()) else { return failure(status) };
        let own = async { self.x509().await?.message().await };
        let Ok(Some(own)) = own.await else { return failure(status) };
        let own: Vec<String> = own.svids.iter().map(|svid| plain(&svid.spiffe_id)).collect();
        if own.iter().any(|own| own == id.as_str()) {
            return failure(status);
        }
        Failure::Refused(format!("this process is not {id}: it is {}", own.join(", ")))
    }

    /// The bundles that this process gets, now and at each change.
    pub(crate) async fn bundles(&mut self) -> Result<Streaming<wire::X509BundlesResponse>, Status> {
        Ok(self.client.fetch_x509_bundles(request(wire::X509BundlesRequest {})).await?.into_inner())
    }
}

/// Every call bears the header that a browser could not be tricked into sending.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// A refusal of the Workload API.
pub(crate) fn failure(status: &Status) -> Failure {
    // One code says that there is no identity, and that there is one and it may not have this (the server refuses to
    // sign, for example).
    if status.code() == Code::PermissionDenied && status.message().starts_with("no identity") {
        let uid = nix::unistd::geteuid();
        // What our own agent says at first is what we have just said.
        let why = status.message().trim_start_matches("no identity is issued to this process: ");
        return Failure::Refused(format!(
            "this process has no identity: {}: create an entry whose selectors match it, for example `chancery entry \
             create --selector unix:uid:{uid} ...`",
            plain(why)
        ));
    }
    refusal::failure(status)
}

/// Concatenated DER certificates one by one. Bytes that are none are refused.
pub(crate) fn certificates(mut der: &[u8]) -> Outcome<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der).map_err(|error| {
            Failure::Refused(format!("the agent sent certificates that cannot be read: {error}: is it of our version?"))
        })?;
        let (one, _) = der.split_at(der.len() - rest.len());
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}

/// When the agent renews an SVID.
pub(crate) fn renewal(svid: &X509Svid) -> Timestamp {
    let lifetime = svid.lifetime();
    renew_at(lifetime.issued(), lifetime.not_after, svid.serial())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sockets() {
        for address in ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"] {
            assert_eq!(socket_path(address).unwrap(), Path::new("/run/a.sock"));
        }
        assert_eq!(socket_path("tcp://127.0.0.1:80").unwrap_err().exit(), 2);
        assert_eq!(socket_path("unix:").unwrap_err().exit(), 2);
    }

    #[test]
    fn concatenated_certificates_are_taken_apart() {
        let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
        let one = rcgen::CertificateParams::default().self_signed(&key).unwrap().der().to_vec();
        let two = rcgen::CertificateParams::new(["b".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec();
        let apart = certificates(&[one.clone(), two.clone()].concat()).unwrap();
        assert_eq!(apart.iter().map(|der| der.to_vec()).collect::<Vec<_>>(), [one.clone(), two]);
        assert!(certificates(&one[1..]).is_err());
    }

    #[test]
    fn a_refusal_is_no_want_of_an_identity_unless_it_says_so() {
        let none = failure(&Status::permission_denied("no identity is issued to this process: no entry")).to_string();
        assert!(
            none.starts_with("this process has no identity: no entry: ") && none.contains("chancery entry create"),
            "{none}"
        );
        let other = failure(&Status::permission_denied("the server refuses to issue it: x")).to_string();
        assert_eq!(other, "not allowed: the server refuses to issue it: x");
    }

    #[tokio::test]
    async fn a_missing_agent_is_told_with_what_to_do() {
        let failure = Workload::connect(Some("unix:///nonexistent/workload.sock")).await.unwrap_err();
        assert_eq!(failure.exit(), 3);
        assert!(failure.to_string().contains("chancery agent run"), "{failure}");
    }
}
