//! `chancery federation`: from where the bundles of foreign trust domains are fetched.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use spiffe::federation::{EndpointUrl, ProfileName};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::proto::v1;
use spiffe::settings::write_duration;
use spiffe::time::Timestamp;

use crate::args::Globals;
use crate::bundle::{self, Format};
use crate::connect::{self, Admin};
use crate::documents::{Named, Relationship, Relationships};
use crate::exit::{Failure, Outcome};
use crate::moments;
use crate::output::{Sheet, Table, plain};
use crate::refusal;
use crate::wait::Wait;

/// What can be done with federation relationships.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Fetch the bundle of a foreign trust domain from its endpoint from now on.
    #[command(after_help = "\
Examples:
  chancery federation create other.org --url https://bundles.other.org/ --profile https_web
  chancery federation create other.org --url https://ca.other.org:8446/ --profile https_spiffe \\
      --endpoint-id spiffe://other.org/chancery/server --bundle other.json --bundle-format spiffe

Trust domain, URL and profile come from whoever runs the other trust domain, by a way that you trust: whoever can
change them on the way can be anybody of that trust domain.")]
    Create {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// Where it is.
        #[arg(long)]
        url: EndpointUrl,
        /// How the endpoint is known: https_web (by a certificate of the web) or https_spiffe (by an SVID).
        #[arg(long, value_name = "PROFILE")]
        profile: ProfileName,
        /// https_spiffe only: the SPIFFE ID that the endpoint shows.
        #[arg(long, value_name = "ID")]
        endpoint_id: Option<SpiffeId>,
        #[command(flatten)]
        first: First,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the relationships, and how their polls have gone.
    #[command(after_help = "\
Example:
  chancery federation list")]
    List,
    /// Show one relationship.
    #[command(after_help = "\
Example:
  chancery federation show other.org")]
    Show {
        /// With whom.
        trust_domain: TrustDomain,
    },
    /// Change a relationship; what is not given stays.
    #[command(after_help = "\
Examples:
  chancery federation update other.org --url https://bundles.other.org:8443/
  chancery federation update other.org --bundle other.json --bundle-format spiffe")]
    Update {
        /// With whom.
        trust_domain: TrustDomain,
        /// Where its bundle is.
        #[arg(long)]
        url: Option<EndpointUrl>,
        /// How the endpoint is known: https_web or https_spiffe. With https_web the endpoint's ID is dropped.
        #[arg(long, value_name = "PROFILE")]
        profile: Option<ProfileName>,
        /// https_spiffe only: the SPIFFE ID that the endpoint shows.
        #[arg(long, value_name = "ID")]
        endpoint_id: Option<SpiffeId>,
        #[command(flatten)]
        first: First,
        #[command(flatten)]
        wait: Wait,
    },
    /// Poll the endpoint now, and say what came.
    #[command(after_help = "\
Example:
  chancery federation refresh other.org")]
    Refresh {
        /// Whose bundle to fetch.
        trust_domain: TrustDomain,
    },
    /// End a relationship: its bundle is dropped too.
    #[command(after_help = "\
Example:
  chancery federation delete other.org --dissociate")]
    Delete {
        /// With whom.
        trust_domain: TrustDomain,
        /// Take the trust domain out of the entries that federate with it; otherwise they are in the way.
        #[arg(long)]
        dissociate: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

/// What to know a trust domain by until the first poll.
#[derive(Debug, Args)]
pub(crate) struct First {
    /// A file with the bundle to begin with; - is standard input.
    #[arg(long, value_name = "FILE", requires = "bundle_format")]
    bundle: Option<PathBuf>,
    /// In which form that is.
    #[arg(long, value_enum, value_name = "FORMAT", requires = "bundle")]
    bundle_format: Option<Format>,
}

impl First {
    fn read(&self, trust_domain: &TrustDomain) -> Outcome<Option<v1::Bundle>> {
        match (&self.bundle, self.bundle_format) {
            (Some(file), Some(format)) => Ok(Some((&bundle::read_file(trust_domain, format, file)?).into())),
            _ => Ok(None),
        }
    }
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let output = globals.output;
        match self {
            Self::Create { trust_domain, url, profile, endpoint_id, first, wait } => {
                if profile == ProfileName::HttpsSpiffe && endpoint_id.is_none() {
                    return Err(Failure::Usage(format!(
                        "--profile https_spiffe needs --endpoint-id, the SPIFFE ID that the endpoint shows: ask whoever runs \
                         {trust_domain} (a server of ours shows {})",
                        trust_domain.server_id()
                    )));
                }
                let relationship = v1::Relationship {
                    trust_domain: trust_domain.to_string(),
                    url: url.to_string(),
                    profile: profile.to_string(),
                    endpoint_spiffe_id: endpoint_id.map(|id| id.to_string()).unwrap_or_default(),
                };
                let bundle = first.read(&trust_domain)?;
                let mut admin = connect::admin(globals).await?;
                let request = v1::CreateRelationshipRequest { relationship: Some(relationship), bundle };
                let made = admin.create_relationship(request).await;
                let revision = made.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let done = (Named { id: trust_domain.to_string() }, revision);
                let said = |named: &Named| {
                    let name = plain(&named.id);
                    format!(
                        "the bundle of {name} is fetched from {url}: \"chancery federation show {name}\" says how that goes"
                    )
                };
                wait.and_show(&mut admin, output, done, said).await
            }
            Self::List => {
                let answer = connect::admin(globals).await?.list_relationships(v1::ListRelationshipsRequest {}).await;
                let found = answer.map_err(|status| refusal::failure(&status))?.into_inner().relationships;
                let document = Relationships { relationships: found.into_iter().map(Relationship::from).collect() };
                output.show(&document, || table(&document.relationships, moments::now()))
            }
            Self::Show { trust_domain } => {
                let wire = show(&mut connect::admin(globals).await?, &trust_domain).await?;
                let document = Relationship::from(wire);
                output.show(&document, || sheet(&document, moments::now()))
            }
            Self::Update { trust_domain, url, profile, endpoint_id, first, wait } => {
                if url.is_none() && profile.is_none() && endpoint_id.is_none() && first.bundle.is_none() {
                    let text = "nothing would change: give --url, --profile, --endpoint-id or --bundle";
                    return Err(Failure::Usage(text.into()));
                }
                let bundle = first.read(&trust_domain)?;
                let mut admin = connect::admin(globals).await?;
                let mut relationship = show(&mut admin, &trust_domain).await?.relationship.unwrap_or_default();
                if let Some(url) = url {
                    relationship.url = url.to_string();
                }
                if let Some(profile) = profile {
                    relationship.profile = profile.to_string();
                    if profile == ProfileName::HttpsWeb {
                        relationship.endpoint_spiffe_id.clear();
                    }
                }
                if let Some(id) = endpoint_id {
                    relationship.endpoint_spiffe_id = id.to_string();
                }
                let request = v1::UpdateRelationshipRequest { relationship: Some(relationship), bundle };
                let changed = admin.update_relationship(request).await;
                let revision = changed.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let done = (Named { id: trust_domain.to_string() }, revision);
                let said = |named: &Named| format!("the relationship with {} is changed", plain(&named.id));
                wait.and_show(&mut admin, output, done, said).await
            }
            Self::Refresh { trust_domain } => {
                let request = v1::RefreshRelationshipRequest { trust_domain: trust_domain.to_string() };
                let polled = connect::admin(globals).await?.refresh_relationship(request).await;
                let document = Relationship::from(polled.map_err(|status| refusal::failure(&status))?.into_inner());
                output.show(&document, || sheet(&document, moments::now()))?;
                match document.last_error.is_empty() {
                    true => Ok(()),
                    false => {
                        Err(Failure::Refused(format!("the poll brought nothing: {}", plain(&document.last_error))))
                    }
                }
            }
            Self::Delete { trust_domain, dissociate, wait } => {
                let mut admin = connect::admin(globals).await?;
                let request = v1::DeleteRelationshipRequest { trust_domain: trust_domain.to_string(), dissociate };
                let deleted = admin.delete_relationship(request).await;
                let revision = deleted.map_err(|status| refusal::failure(&status))?.into_inner().revision;
                let done = (Named { id: trust_domain.to_string() }, revision);
                let said = |named: &Named| format!("{} is polled and trusted no more", plain(&named.id));
                wait.and_show(&mut admin, output, done, said).await
            }
        }
    }
}

async fn show(admin: &mut Admin, trust_domain: &TrustDomain) -> Outcome<v1::RelationshipStatus> {
    let request = v1::ShowRelationshipRequest { trust_domain: trust_domain.to_string() };
    Ok(admin.show_relationship(request).await.map_err(|status| refusal::failure(&status))?.into_inner())
}

impl From<v1::RelationshipStatus> for Relationship {
    fn from(wire: v1::RelationshipStatus) -> Self {
        let relationship = wire.relationship.unwrap_or_default();
        let hint = Duration::from_secs(wire.refresh_hint);
        Self {
            trust_domain: relationship.trust_domain,
            url: relationship.url,
            profile: relationship.profile,
            endpoint_spiffe_id: relationship.endpoint_spiffe_id,
            source: wire.source,
            last_poll_at: moments::Moment(wire.last_poll_at),
            last_success_at: moments::Moment(wire.last_success_at),
            last_outcome: wire.last_outcome,
            last_error: wire.last_error,
            next_poll_at: moments::Moment(wire.next_poll_at),
            sequence: wire.has_bundle.then_some(wire.sequence),
            refresh_hint: (!hint.is_zero()).then(|| write_duration(hint)),
            x509_authorities: wire.has_bundle.then_some(wire.x509_authorities),
        }
    }
}

fn when(seconds: u64, now: Timestamp) -> String {
    if seconds == 0 { String::new() } else { moments::relative(Timestamp::from_unix(seconds), now) }
}

fn sheet(relationship: &Relationship, now: Timestamp) -> String {
    let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    Sheet::default()
        .line("trust domain", &relationship.trust_domain)
        .line("url", &relationship.url)
        .line("profile", &relationship.profile)
        .line("endpoint id", &relationship.endpoint_spiffe_id)
        .line("stands in", &relationship.source)
        .line("roots", relationship.x509_authorities.map_or("no bundle yet".into(), |roots| roots.to_string()))
        .line("sequence", number(relationship.sequence))
        .line("refresh hint", relationship.refresh_hint.clone().unwrap_or_default())
        .line("last poll", when(relationship.last_poll_at.0, now))
        .line("outcome", &relationship.last_outcome)
        .line("error", &relationship.last_error)
        .line("last in order", when(relationship.last_success_at.0, now))
        .line("next poll", when(relationship.next_poll_at.0, now))
        .text()
}

fn table(relationships: &[Relationship], now: Timestamp) -> String {
    let heads = ["TRUST DOMAIN", "PROFILE", "SOURCE", "SEQUENCE", "LAST POLL", "OUTCOME", "NEXT POLL", "URL"];
    let mut table = Table::new(heads);
    for one in relationships {
        table.row([
            one.trust_domain.clone(),
            one.profile.clone(),
            one.source.clone(),
            one.sequence.map(|sequence| sequence.to_string()).unwrap_or_default(),
            when(one.last_poll_at.0, now),
            one.last_outcome.clone(),
            when(one.next_poll_at.0, now),
            one.url.clone(),
        ]);
    }
    table.text_or("no federation relationships")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relationships_as_text() {
        let relationship = v1::Relationship {
            trust_domain: "other.org".into(),
            url: "https://bundles.other.org/".into(),
            profile: "https_web".into(),
            ..Default::default()
        };
        let now = Timestamp::from_unix(1_000_000);
        let wire = v1::RelationshipStatus {
            relationship: Some(relationship),
            source: "store".into(),
            last_poll_at: 999_990,
            last_outcome: "failed".into(),
            last_error: "bundles.other.org has no address".into(),
            next_poll_at: 1_000_250,
            ..Default::default()
        };
        let new = sheet(&Relationship::from(wire.clone()), now);
        assert!(new.contains("roots         no bundle yet\n") && new.contains("last poll     10s ago\n"), "{new}");
        assert!(new.contains("error         bundles.other.org has no address\nnext poll     in 4m\n"), "{new}");
        let known =
            v1::RelationshipStatus { has_bundle: true, sequence: 7, x509_authorities: 2, refresh_hint: 90, ..wire };
        let known = Relationship::from(known);
        assert!(sheet(&known, now).contains("sequence      7\nrefresh hint  1m 30s\n"));
        let line =
            "other.org     https_web  store   7         10s ago    failed   in 4m      https://bundles.other.org/\n";
        assert!(table(&[known], now).ends_with(line));
    }
}
