//! A delivery and its material -> the files of one version. Pure.
//!
//! - *in time*: an SVID or a token that has expired is never rendered.
//! - *as one*: a key comes with the certificate that it fits, or nothing is rendered.
//! - *each name once*: two files that would have one name are refused.

use std::collections::BTreeSet;

use rustls_pki_types::CertificateDer;
use spiffe::audience::Audience;
use spiffe::id::TrustDomain;
use spiffe::time::Timestamp;
use spiffe::x509_svid::SvidError;
use zeroize::Zeroizing;

use super::material::Material;
use crate::config::deliver::template::{TemplateError, Values};
use crate::config::deliver::{Delivery, Kind};

pub(super) mod pem;

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

/// The files of `delivery`, as they are to be at `now`.
pub(super) fn render(delivery: &Delivery, material: &Material, now: Timestamp) -> Result<Rendered, RenderError> {
    let svid = &material.identity.svid;
    if now > svid.lifetime().not_after {
        return Err(RenderError::Expired(svid.lifetime().not_after));
    }
    svid.key_fits(&material.identity.key).map_err(RenderError::Key)?;
    let (mut files, mut names) = (Vec::new(), BTreeSet::new());
    for file in &delivery.files {
        for domain in domains(&file.kind, material) {
            let values = Values { name: &delivery.name, spiffe_id: material.id(), trust_domain: &domain };
            let name = file.name.fill(values).map_err(RenderError::Name)?;
            if !names.insert(name.clone()) {
                return Err(RenderError::Twice(name));
            }
            let content = content(&file.kind, material, &domain, now)?;
            let (owner, group) = (file.owner.clone(), file.group.clone());
            files.push(RenderedFile { name, content, owner, group, mode: file.mode });
        }
    }
    Ok(Rendered { version: material.version(), files })
}

/// For which trust domains there is a file of this kind.
fn domains(kind: &Kind, material: &Material) -> Vec<TrustDomain> {
    match kind {
        Kind::Bundle { federated: true } => material.identity.roots.keys().cloned().collect(),
        Kind::Jwks { federated: true } => material.identity.jwks.keys().cloned().collect(),
        _ => vec![material.id().trust_domain()],
    }
}

fn content(
    kind: &Kind,
    material: &Material,
    domain: &TrustDomain,
    now: Timestamp,
) -> Result<Zeroizing<Vec<u8>>, RenderError> {
    let identity = &material.identity;
    let roots = || -> &[CertificateDer<'static>] { identity.roots.get(domain).map_or(&[], Vec::as_slice) };
    Ok(match kind {
        Kind::Chain => pem::certificates(identity.svid.chain()).into_bytes().into(),
        Kind::Key => pem::private_key(&identity.key),
        Kind::Combined => pem::combined(identity),
        Kind::Bundle { .. } => pem::certificates(roots()).into_bytes().into(),
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
