//! A delivery and its material -> the files of one version. Pure.
//!
//! - *in time*: an SVID or a token that has expired is never rendered.
//! - *as one*: a key comes with the certificate that it fits, or nothing is rendered.
//! - *each name once*: two files that would have one name are refused.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rustls_pki_types::CertificateDer;
use spiffe::audience::Audience;
use spiffe::id::TrustDomain;
use spiffe::time::Timestamp;
use spiffe::x509_svid::SvidError;
use zeroize::Zeroizing;

use super::inputs::Inputs;
use super::kong::KongIdentity;
use super::material::Material;
use crate::config::deliver::template::{TemplateError, Values};
use crate::config::deliver::{Delivery, Kind};

mod kong_file;
pub(super) mod pem;
mod pkcs12;

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The SVID has ended.
    #[error("the SVID has expired at {0}, and is not written: it is written again as soon as a server renews it")]
    Expired(Timestamp),
    /// A token has ended.
    #[error("the JWT-SVID for {} has expired at {at}, and is not written", .audience.values().join(", "))]
    TokenExpired {
        /// For whom it is.
        audience: Audience,
        /// When it ended.
        at: Timestamp,
    },
    /// A token is not there.
    #[error("there is no JWT-SVID for {} yet, and nothing is written without it: the log says why", .0.values().join(", "))]
    NoToken(Audience),
    /// A password file has no password.
    #[error("{} has no password in its first line", .0.display())]
    NoPassword(PathBuf),
    /// The PKCS#12 file cannot be made.
    #[error("no PKCS#12 file can be made of this identity: {0}")]
    Pkcs12(String),
    /// The config to put an identity into is none.
    #[error("{}: {why}", .path.display())]
    Base {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key is not the certificate's.
    #[error("key and certificate do not belong together, and are not written: {0}")]
    Key(SvidError),
    /// A template gives no name.
    #[error("the name of a file: {0}")]
    Name(TemplateError),
    /// A template gives one name twice.
    #[error("two files would be called {0:?}: give each a name of its own")]
    Twice(String),
}

/// The files of one version.
#[derive(Debug)]
pub(super) struct Rendered {
    /// That of the material.
    pub(super) version: String,
    /// In the order of the config; no name twice.
    pub(super) files: Vec<RenderedFile>,
}

/// One file. Its content is not printed.
pub(super) struct RenderedFile {
    /// A name inside of the folder.
    pub(super) name: String,
    /// What is in it.
    pub(super) content: Zeroizing<Vec<u8>>,
    /// `None`: whoever writes it.
    pub(super) owner: Option<String>,
    /// `None`: the group of whoever writes it.
    pub(super) group: Option<String>,
    /// Its mode.
    pub(super) mode: u32,
}

impl std::fmt::Debug for RenderedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RenderedFile").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// What files are made of.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    /// Whose they are.
    pub(super) delivery: &'a Delivery,
    /// What is in them.
    pub(super) material: &'a Material,
    /// What was read of this machine for them.
    pub(super) inputs: &'a Inputs,
    /// When they are written.
    pub(super) now: Timestamp,
}

/// The files, as they are to be now.
pub(super) fn render(of: Of<'_>) -> Result<Rendered, RenderError> {
    let Of { delivery, material, now, .. } = of;
    let svid = &material.identity.svid;
    if delivery.has_svid() {
        if now > svid.lifetime().not_after {
            return Err(RenderError::Expired(svid.lifetime().not_after));
        }
        svid.key_fits(&material.identity.key).map_err(RenderError::Key)?;
    }
    let (mut files, mut names) = (Vec::new(), BTreeSet::new());
    for file in &delivery.files {
        for domain in domains(&file.kind, material) {
            let values = Values { name: &delivery.name, spiffe_id: material.id(), trust_domain: &domain };
            let name = file.name.fill(values).map_err(RenderError::Name)?;
            if !names.insert(name.clone()) {
                return Err(RenderError::Twice(name));
            }
            let content = content(&file.kind, &domain, of)?;
            let (owner, group) = (file.owner.clone(), file.group.clone());
            files.push(RenderedFile { name, content, owner, group, mode: file.mode });
        }
    }
    Ok(Rendered { version: material.version(delivery), files })
}

/// For which trust domains there is a file of this kind.
fn domains(kind: &Kind, material: &Material) -> Vec<TrustDomain> {
    match kind {
        Kind::Bundle { federated: true } => material.identity.roots.keys().cloned().collect(),
        Kind::Jwks { federated: true } => material.identity.jwks.keys().cloned().collect(),
        _ => vec![material.id().trust_domain()],
    }
}

fn content(kind: &Kind, domain: &TrustDomain, of: Of<'_>) -> Result<Zeroizing<Vec<u8>>, RenderError> {
    let Of { delivery, material, inputs, now } = of;
    let identity = &material.identity;
    let roots = || -> &[CertificateDer<'static>] { identity.roots.get(domain).map_or(&[], Vec::as_slice) };
    Ok(match kind {
        Kind::Chain => pem::certificates(identity.svid.chain()).into_bytes().into(),
        Kind::Key => pem::private_key(&identity.key),
        Kind::Combined => pem::combined(identity),
        Kind::Bundle { .. } => pem::certificates(roots()).into_bytes().into(),
        Kind::Pkcs12 { password_file } => {
            let password = inputs.first_line(password_file);
            let password = password.ok_or_else(|| RenderError::NoPassword(password_file.clone()))?;
            pkcs12::render(identity, &delivery.name, password).map_err(RenderError::Pkcs12)?
        }
        Kind::KongFile { base, entities } => {
            let told = KongIdentity::new(&delivery.name, entities, material, now);
            let rendered = kong_file::render(inputs.content(base), entities, &told);
            rendered.map_err(|why| RenderError::Base { path: base.clone(), why })?
        }
        Kind::Jwks { .. } => identity.jwks.get(domain).map_or(NO_KEYS, String::as_str).as_bytes().to_vec().into(),
        Kind::Jwt { audience } => {
            let token = material.tokens.get(audience).ok_or_else(|| RenderError::NoToken(audience.clone()))?;
            if now >= token.expires_at() {
                return Err(RenderError::TokenExpired { audience: audience.clone(), at: token.expires_at() });
            }
            token.token().as_bytes().to_vec().into()
        }
    })
}

/// A JWK set with nothing in it.
const NO_KEYS: &str = r#"{"keys":[]}"#;

#[cfg(test)]
mod tests;
