//! `chancery fetch bundle`: what this process verifies others with. Roots are PEM, keys for tokens are JWK sets.
//!
//! - What stands on stdout is nothing but the documents, so that it can go into a file or a pipe; whose they are is said
//!   on stderr where there are several.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Args, ValueEnum};
use spiffe::id::TrustDomain;
use spiffe::proto::workload as wire;

use crate::documents::{TrustBundle, TrustBundles};
use crate::exit::{Failure, Outcome};
use crate::fetch::Fetch;
use crate::files::{self, PUBLIC};
use crate::moments;
use crate::output::{self, Output, plain};
use crate::svid_files::BUNDLE;
use crate::workload::{self, Workload};

/// What bundles are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// X.509-SVIDs: roots, as PEM.
    #[default]
    X509,
    /// JWT-SVIDs: keys, as JWK sets.
    Jwt,
    /// WIT-SVIDs: keys, as JWK sets.
    Wit,
}

impl Kind {
    /// What the name of a file with such a bundle ends in.
    fn ending(self) -> &'static str {
        match self {
            Self::X509 => "pem",
            Self::Jwt => "jwt.json",
            Self::Wit => "wit.json",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct FetchBundle {
    /// What is to be verified with them.
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    kind: Kind,
    /// That of this trust domain alone.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    fetch: Fetch,
}

impl FetchBundle {
    /// Does it.
    pub(crate) async fn run(self, output: Output) -> Outcome {
        match self.kind {
            Kind::X509 => {
                let take = |answer: &wire::X509BundlesResponse| {
                    let bundles = foreign(&answer.bundles)?.into_iter();
                    self.take(bundles.map(|(name, pem)| (name, TrustBundle::Roots(pem))).collect(), output)
                };
                self.fetch.each(async |workload: &mut Workload| Ok(workload.bundles().await?), take).await
            }
            Kind::Jwt => {
                let take = |answer: &wire::JwtBundlesResponse| self.take(key_sets(&answer.bundles)?, output);
                self.fetch.each(async |workload: &mut Workload| Ok(workload.jwt_bundles().await?), take).await
            }
            Kind::Wit => {
                let take = |answer: &wire::WitBundlesResponse| self.take(key_sets(&answer.bundles)?, output);
                self.fetch.each(async |workload: &mut Workload| Ok(workload.wit_bundles().await?), take).await
            }
        }
    }

    fn take(&self, all: BTreeMap<String, TrustBundle>, output: Output) -> Outcome {
        let bundles = self.wanted(all)?;
        let Fetch { write, watch, .. } = &self.fetch;
        if let Some(folder) = write {
            for (name, bundle) in &bundles {
                let file = format!("bundle.{name}.{}", self.kind.ending());
                files::write(folder, &file, PUBLIC, bundle.text().as_bytes())?;
            }
        }
        let document = TrustBundles { bundles };
        let TrustBundles { bundles } = &document;
        if *watch {
            let line = |(name, bundle): (&String, &TrustBundle)| format!("{name}: {}", bundle.size());
            let names = || bundles.iter().map(line).collect::<Vec<_>>().join(", ");
            return output.show_line(&document, || format!("{}  {}", moments::now(), names()));
        }
        output.show(&document, || match write {
            Some(folder) => {
                let word = if bundles.len() == 1 { "bundle" } else { "bundles" };
                format!("{} {word} written to {}", bundles.len(), plain(&folder.display().to_string()))
            }
            None => bundles.values().map(TrustBundle::text).collect(),
        })?;
        if output == Output::Text && write.is_none() && bundles.len() > 1 {
            let names = names(bundles);
            output::remark(&format!(
                "note: the bundles of {names}, one after the other: --trust-domain prints one alone"
            ));
        }
        Ok(())
    }

    /// The bundle that was asked for, or all.
    fn wanted(&self, mut all: BTreeMap<String, TrustBundle>) -> Outcome<BTreeMap<String, TrustBundle>> {
        let Some(name) = &self.trust_domain else { return Ok(all) };
        match all.remove_entry(&name.to_string()) {
            Some(one) => Ok(BTreeMap::from([one])),
            None => Err(Failure::Refused(format!(
                "this process gets no bundle of {name}, but of {}: its entry has to federate with {name} (`chancery entry \
                 update ENTRY --federates-with {name}`), and the server has to know the bundle",
                names(&all)
            ))),
        }
    }
}

fn names(bundles: &BTreeMap<String, TrustBundle>) -> String {
    bundles.keys().cloned().collect::<Vec<_>>().join(", ")
}

/// The bare name in the SPIFFE ID of a trust domain. Parsed, because it becomes the name of a file.
fn name(id: &str) -> Outcome<String> {
    let parsed = TrustDomain::parse(id);
    let parsed =
        parsed.map_err(|error| Failure::Refused(format!("the agent named the trust domain {}: {error}", plain(id))))?;
    Ok(parsed.to_string())
}

/// JWK sets by the bare names of their trust domains.
fn key_sets<'a>(
    sets: impl IntoIterator<Item = (&'a String, &'a (impl AsRef<[u8]> + 'a))>,
) -> Outcome<BTreeMap<String, TrustBundle>> {
    let one = |(id, document): (&String, &_)| {
        let keys = serde_json::from_slice(AsRef::as_ref(document))
            .map_err(|error| Failure::Refused(format!("the agent sent a JWK set that is none: {error}")))?;
        Ok((name(id)?, TrustBundle::Keys(keys)))
    };
    sets.into_iter().map(one).collect()
}

/// Bundles by the bare names of their trust domains, as PEM.
pub(crate) fn foreign<'a>(
    bundles: impl IntoIterator<Item = (&'a String, &'a (impl AsRef<[u8]> + 'a))>,
) -> Outcome<BTreeMap<String, String>> {
    let one = |(id, der): (&String, &_)| {
        let roots = workload::certificates(AsRef::as_ref(der))?;
        Ok((name(id)?, roots.iter().map(|der| spiffe::pem::certificate(der)).collect()))
    };
    bundles.into_iter().map(one).collect()
}

/// Writes the bundles of foreign trust domains beside an SVID.
pub(crate) fn write_bundles(folder: &Path, bundles: &BTreeMap<String, String>) -> Outcome {
    bundles.iter().try_for_each(|(name, pem)| {
        files::write(folder, &BUNDLE.replace(".pem", &format!(".{name}.pem")), PUBLIC, pem.as_bytes())
    })
}
