//! `chancery bundle`: trust bundles.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use spiffe::bundle::Bundle;
use spiffe::id::TrustDomain;
use spiffe::proto::v1;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::connect::{self, Admin};
use crate::documents::{self, Named, Root, TokenKey};
use crate::exit::{Failure, Outcome};
use crate::moments::{self, Moment};
use crate::output::{self, Output, Sheet, Table, plain};
use crate::wait::Wait;
use crate::{files, refusal};

/// Somewhere in every PEM file.
const PEM: &[u8] = b"-----BEGIN ";

/// In which form bundles travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Concatenated PEM certificates.
    Pem,
    /// A SPIFFE bundle: a JWKS document with the roots and the keys for tokens. "jwks" says the same.
    #[value(alias = "jwks")]
    Spiffe,
    /// The keys for JWT-SVIDs alone: a JWK set.
    Jwt,
    /// The keys for WIT-SVIDs alone: a JWK set.
    Wit,
}

/// What can be done with bundles.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show the bundle of a trust domain.
    #[command(after_help = "\
Examples:
  chancery bundle show                             whose SVIDs and tokens are trusted, and until when
  chancery bundle show --format pem > roots.pem    for whatever verifies certificates
  chancery bundle show --format jwt > keys.json    for whatever verifies JWT-SVIDs
  chancery bundle show --format jwks > ours.json   all of it, for another trust domain")]
    Show {
        /// Whose; our own where none is named.
        trust_domain: Option<TrustDomain>,
        /// Print it as a file for others instead.
        #[arg(long, value_enum, value_name = "FORMAT")]
        format: Option<Format>,
    },
    /// List our own bundle and the foreign ones.
    #[command(after_help = "\
Example:
  chancery bundle list")]
    List,
    /// Trust a foreign trust domain by this bundle from now on.
    #[command(after_help = "\
Example, with what `chancery bundle show --format spiffe` printed at the other trust domain:
  chancery bundle set other.org --format spiffe --file theirs.json")]
    Set {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// In which form it is.
        #[arg(long, value_enum, value_name = "FORMAT")]
        format: Format,
        /// The file; - is standard input.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        wait: Wait,
    },
    /// Trust a foreign trust domain no more.
    #[command(after_help = "\
Example:
  chancery bundle delete other.org --dissociate --wait")]
    Delete {
        /// Whose bundle to delete.
        trust_domain: TrustDomain,
        /// Take the trust domain out of the entries that federate with it; otherwise they are in the way.
        #[arg(long)]
        dissociate: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let output = globals.output;
        match self {
            Self::Show { trust_domain, format } => {
                if let (Some(_), Output::Json) = (format, output) {
                    let text =
                        "--format prints the bundle as a file of that format: leave out --output json, or --format";
                    return Err(Failure::Usage(text.into()));
                }
                let name = trust_domain.map(|name| name.to_string()).unwrap_or_default();
                let wire = show(&mut connect::admin(globals).await?, name).await?;
                match format {
                    Some(Format::Pem) => output::print(&parse(wire)?.to_pem()),
                    Some(Format::Spiffe) => output::print(&parse(wire)?.to_jwks()),
                    Some(Format::Jwt) => output::print(&parse(wire)?.to_jwt_jwks()),
                    Some(Format::Wit) => output::print(&parse(wire)?.to_wit_jwks()),
                    None => {
                        let document = document(wire);
                        output.show(&document, || sheet(&document, moments::now()))
                    }
                }
            }
            Self::List => {
                let answer = connect::admin(globals).await?.list_bundles(v1::ListBundlesRequest {}).await;
                let bundles = answer.map_err(|status| refusal::failure(&status))?.into_inner().bundles;
                let document = documents::Bundles { bundles: bundles.into_iter().map(document).collect() };
                output.show(&document, || table(&document.bundles, moments::now()))
            }
            Self::Set { trust_domain, format, file, wait } => {
                let bundle = read_file(&trust_domain, format, &file)?;
                let mut admin = connect::admin(globals).await?;
                let answer = admin.set_bundle(v1::SetBundleRequest { bundle: Some((&bundle).into()) }).await;
                let revision = answer.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let trusted_by = trusted_by(&bundle);
                let said = |named: &Named| format!("{} is trusted by {trusted_by}", plain(&named.id));
                let done = (Named { id: trust_domain.to_string() }, revision);
                wait.and_show(&mut admin, output, done, said).await
            }
            Self::Delete { trust_domain, dissociate, wait } => {
                let mut admin = connect::admin(globals).await?;
                let request = v1::DeleteBundleRequest { trust_domain: trust_domain.to_string(), dissociate };
                let answer = admin.delete_bundle(request).await;
                let revision = answer.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let done = (Named { id: trust_domain.to_string() }, revision);
                let said = |named: &Named| format!("{} is trusted no more", plain(&named.id));
                wait.and_show(&mut admin, output, done, said).await
            }
        }
    }
}

/// The bundle of a trust domain; of our own for an empty name.
pub(crate) async fn show(admin: &mut Admin, trust_domain: String) -> Outcome<v1::Bundle> {
    let answer = admin.show_bundle(v1::ShowBundleRequest { trust_domain }).await;
    Ok(answer.map_err(|status| refusal::failure(&status))?.into_inner())
}

/// The bundle of `trust_domain` in a file.
pub(crate) fn read_file(trust_domain: &TrustDomain, format: Format, file: &Path) -> Outcome<Bundle> {
    let content = files::read(file)?;
    let first = content.iter().find(|byte| !byte.is_ascii_whitespace());
    let hint = match format {
        Format::Pem if first == Some(&b'{') => " (it looks like a SPIFFE bundle: its form is spiffe)",
        Format::Spiffe if content.windows(PEM.len()).any(|window| window == PEM) => {
            " (it looks like PEM: its form is pem)"
        }
        _ => "",
    };
    let bundle = match format {
        Format::Pem => Bundle::from_pem(trust_domain.clone(), &content),
        Format::Spiffe => Bundle::from_jwks(trust_domain.clone(), &content),
        Format::Jwt | Format::Wit => {
            let text = "a JWK set of one kind of token is no whole bundle: give one in the form spiffe or pem";
            return Err(Failure::Usage(text.into()));
        }
    };
    bundle.map_err(|error| Failure::Refused(format!("{}: {error}{hint}", file.display())))
}

/// `1 root, 2 JWT keys, no WIT key`.
fn trusted_by(bundle: &Bundle) -> String {
    let counted = |count: usize, word: &str| match count {
        0 => format!("no {word}"),
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    [
        counted(bundle.x509_authorities().len(), "root"),
        counted(bundle.jwt_authorities().len(), "JWT key"),
        counted(bundle.wit_authorities().len(), "WIT key"),
    ]
    .join(", ")
}

fn parse(wire: v1::Bundle) -> Outcome<Bundle> {
    Bundle::try_from(wire).map_err(|error| Failure::Refused(format!("the server sent a bundle that is none: {error}")))
}

fn document(wire: v1::Bundle) -> documents::Bundle {
    let hint = (wire.refresh_hint > 0).then(|| Duration::from_secs(wire.refresh_hint));
    documents::Bundle {
        trust_domain: wire.trust_domain,
        sequence: wire.sequence,
        refresh_hint: hint.map(spiffe::settings::write_duration),
        x509_authorities: wire.x509_authorities.iter().map(root).collect(),
        jwt_authorities: wire.jwt_authorities.iter().map(token_key).collect(),
        wit_authorities: wire.wit_authorities.iter().map(token_key).collect(),
    }
}

fn token_key(wire: &v1::JwkAuthority) -> TokenKey {
    let jwk: serde_json::Value = serde_json::from_str(&wire.jwk).unwrap_or_default();
    TokenKey { kid: jwk["kid"].as_str().unwrap_or_default().to_owned(), tainted: wire.tainted, jwk }
}

fn root(wire: &v1::X509Authority) -> Root {
    let parsed = x509_parser::parse_x509_certificate(&wire.certificate).ok();
    let read = parsed.map(|(_, certificate)| {
        let seconds = |at: x509_parser::time::ASN1Time| Moment(u64::try_from(at.timestamp()).unwrap_or_default());
        let validity = certificate.validity();
        (certificate.subject().to_string(), seconds(validity.not_before), seconds(validity.not_after))
    });
    let (subject, not_before, not_after) = read.unwrap_or(("unreadable".into(), Moment(0), Moment(0)));
    Root {
        fingerprint: spiffe::crypto::sha256_hex(&wire.certificate),
        subject,
        not_before,
        not_after,
        tainted: wire.tainted,
        pem: spiffe::pem::certificate(&wire.certificate),
    }
}

fn sheet(bundle: &documents::Bundle, now: Timestamp) -> String {
    let head = Sheet::default()
        .line("trust domain", &bundle.trust_domain)
        .line("sequence", bundle.sequence.to_string())
        .line("refresh hint", bundle.refresh_hint.clone().unwrap_or_default());
    let marks = |tainted: bool| if tainted { "tainted".to_owned() } else { String::new() };
    let mut roots = Table::new(["FINGERPRINT", "EXPIRES", "SUBJECT", "MARKS"]);
    for root in &bundle.x509_authorities {
        let fingerprint = format!("sha256:{}", root.fingerprint);
        let expires = moments::expires(root.not_after.0, now);
        roots.row([fingerprint, expires, root.subject.clone(), marks(root.tainted)]);
    }
    let mut keys = Table::new(["KID", "FOR", "KEY", "MARKS"]);
    for (kind, authorities) in [("JWT-SVIDs", &bundle.jwt_authorities), ("WIT-SVIDs", &bundle.wit_authorities)] {
        for key in authorities {
            // What the key is: documents of others seldom say the algorithm.
            let of = ["crv", "kty"].iter().find_map(|name| key.jwk[*name].as_str()).unwrap_or_default();
            keys.row([key.kid.clone(), kind.into(), of.to_owned(), marks(key.tainted)]);
        }
    }
    let roots = roots.text_or("no roots: no certificate of it is trusted\n");
    let keys = keys.text_or("no keys for tokens: no JWT-SVID and no WIT-SVID of it is trusted\n");
    format!("{}\n{roots}\n{keys}", head.text())
}

fn table(bundles: &[documents::Bundle], now: Timestamp) -> String {
    let mut table = Table::new(["TRUST DOMAIN", "ROOTS", "FIRST EXPIRES", "JWT KEYS", "WIT KEYS", "SEQUENCE"]);
    for bundle in bundles {
        let first = bundle.x509_authorities.iter().map(|root| root.not_after.0).min();
        table.row([
            bundle.trust_domain.clone(),
            bundle.x509_authorities.len().to_string(),
            first.map(|at| moments::expires(at, now)).unwrap_or_default(),
            bundle.jwt_authorities.len().to_string(),
            bundle.wit_authorities.len().to_string(),
            bundle.sequence.to_string(),
        ]);
    }
    table.text_or("no bundles")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_as_text() {
        let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
        let mut wish = rcgen::CertificateParams::default();
        wish.not_after = Timestamp::from_unix(2_000_000_000).to_date_time();
        let der = wish.self_signed(&key).unwrap().der().to_vec();
        let wire = v1::Bundle {
            trust_domain: "example.org".into(),
            x509_authorities: vec![v1::X509Authority { certificate: der.clone().into(), tainted: true }],
            sequence: 3,
            refresh_hint: 300,
            jwt_authorities: vec![v1::JwkAuthority { jwk: r#"{"kid":"u5Zc","crv":"P-256"}"#.into(), tainted: true }],
            ..v1::Bundle::default()
        };
        let document = document(wire);
        let now = Timestamp::from_unix(2_000_000_000 - 3 * 86_400);
        let text = sheet(&document, now);
        assert!(text.contains("refresh hint  5m\n"), "{text}");
        assert!(text.contains(&format!("{}  in 3d    ", spiffe::crypto::sha256_hex(&der))), "{text}");
        assert!(text.lines().any(|line| line.starts_with("sha256:") && line.ends_with("  tainted")), "{text}");
        assert!(text.ends_with("\nKID   FOR        KEY    MARKS\nu5Zc  JWT-SVIDs  P-256  tainted\n"), "{text}");
        let table = table(&[document], now);
        assert!(table.contains("example.org   1      in 3d          1         0         3\n"), "{table}");
    }
}
