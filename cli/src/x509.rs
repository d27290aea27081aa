//! `chancery x509`: X.509-SVIDs made by an operator, for what has no agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use rustls_pki_types::CertificateDer;
use spiffe::entry::{DnsName, KeyType};
use spiffe::id::SpiffeId;
use spiffe::proto::v1;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use crate::args::Globals;
use crate::documents::Svid;
use crate::exit::{Failure, Outcome};
use crate::moments::Moment;
use crate::output::{self, Output, plain};
use crate::svid_files::PemSvid;
use crate::{bundle, connect, files, moments, refusal};

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a key here, and have an SVID signed for it. The key never leaves this machine.
    #[command(after_help = "\
Example:
  chancery x509 mint --spiffe-id spiffe://example.org/backup --ttl 1d --write /etc/backup/identity

writes svid.pem, key.pem (readable by you alone) and bundle.pem.")]
    Mint(Mint),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Mint {
    /// The identity.
    #[arg(long, value_name = "ID")]
    spiffe_id: SpiffeId,
    /// How long it lives; as the server's config says where it is not given.
    #[arg(long, value_name = "DURATION", value_parser = moments::parse_some_time)]
    ttl: Option<Duration>,
    /// A DNS name in it; may be repeated, the first is also the common name.
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<DnsName>,
    /// The kind of key: p256, p384 or ed25519.
    #[arg(long, value_name = "KIND", default_value_t)]
    key_type: KeyType,
    /// The folder to write the files to; they are printed where none is given.
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let Self::Mint(mint) = self;
        let failed = |error: &dyn std::fmt::Display| Failure::Refused(format!("no SVID could be made: {error}"));
        let mut admin = connect::admin(globals).await?;
        let key = Zeroizing::new(spiffe::crypto::generate_key(mint.key_type).map_err(|error| failed(&error))?);
        let request = v1::MintX509SvidRequest {
            spiffe_id: mint.spiffe_id.to_string(),
            csr: spiffe::csr::create(&key).map_err(|error| failed(&error))?.into(),
            ttl: mint.ttl.map_or(0, |ttl| ttl.as_secs().max(1)),
            dns_names: mint.dns_names.iter().map(ToString::to_string).collect(),
        };
        let answer = admin.mint_x509_svid(request).await.map_err(|status| refusal::failure(&status))?.into_inner();
        let bundle = bundle::show(&mut admin, String::new()).await?;

        let chain: Vec<_> = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = X509Svid::parse(chain).map_err(|error| failed(&error))?;
        if *svid.id() != mint.spiffe_id {
            return Err(failed(&format!("the server signed {} instead", svid.id())));
        }
        let key = Zeroizing::new(key.serialize_der());
        let roots = bundle.x509_authorities.iter().map(|root| root.certificate.as_ref());
        let pem = PemSvid::new(svid.chain().iter().map(AsRef::as_ref), &key, roots);
        show(globals.output, &svid, &pem, mint.write.as_deref())
    }
}

fn show(output: Output, svid: &X509Svid, pem: &PemSvid, folder: Option<&Path>) -> Outcome {
    let document = |key: Option<String>, pem: &PemSvid| Svid {
        spiffe_id: svid.id().to_string(),
        hint: String::new(),
        serial: spiffe::crypto::hex(svid.serial()),
        not_before: Moment(svid.lifetime().not_before.unix()),
        not_after: Moment(svid.lifetime().not_after.unix()),
        svid: pem.svid.clone(),
        key,
        bundle: pem.bundle.clone(),
    };
    let Some(folder) = folder else {
        return match output {
            Output::Text => output::print(&pem.text()),
            Output::Json => output.show(&document(Some(pem.key.to_string()), pem), String::new),
        };
    };
    files::make_private_folder(folder)?;
    pem.write(folder, "")?;
    output.show(&document(None, pem), || {
        let expiry = moments::expiry(svid.lifetime().not_after.unix(), moments::now());
        let place = plain(&folder.display().to_string());
        format!("wrote svid.pem, key.pem and bundle.pem to {place}: {}, {expiry}", svid.id())
    })
}
