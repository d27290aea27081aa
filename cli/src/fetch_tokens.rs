//! `chancery fetch jwt` and `chancery fetch wit`: tokens from the Workload API, and the keys to verify them with.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use spiffe::id::{SpiffeId, TrustDomain};
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::workload as wire;
use spiffe::time::Timestamp;
use spiffe::wit_svid::WitSvid;

use crate::documents::{JwkSets, JwtSvids, TokenSvid, WitSvids};
use crate::exit::{Failure, Outcome};
use crate::fetch::{Fetch, in_time};
use crate::files::{self, PRIVATE, PUBLIC};
use crate::moments::{self, Moment};
use crate::output::{self, Output, Sheet, plain};
use crate::svid_files::{suffix, with_suffix};
use crate::workload::{self, SOCKET_VARIABLE, Workload};

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

#[derive(Debug, Args)]
pub(crate) struct Jwt {
    /// For whom the token is; may be repeated, and one is best.
    #[arg(long = "audience", required = true, value_name = "AUDIENCE")]
    audiences: Vec<String>,
    /// Of this identity alone.
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Print the token of the default identity and nothing else.
    #[arg(long)]
    raw: bool,
    /// The socket of the Workload API.
    #[arg(long, env = SOCKET_VARIABLE, value_name = "ADDRESS")]
    workload_socket: Option<String>,
}

impl Jwt {
    /// Does it.
    pub(crate) async fn run(self, output: Output) -> Outcome {
        let mut workload = Workload::connect(self.workload_socket.as_deref()).await?;
        let id = self.spiffe_id.map(|id| id.to_string()).unwrap_or_default();
        let fetched =
            in_time(async { workload.jwt(self.audiences, id).await.map_err(|status| workload::failure(&status)) });
        let svids = fetched.await?.iter().map(jwt_document).collect::<Outcome<Vec<_>>>()?;
        if let (true, Some(first)) = (self.raw, svids.first()) {
            return output::print(&first.token);
        }
        let now = moments::now();
        output.show(&JwtSvids { svids: svids.clone() }, || {
            svids.iter().map(|svid| format!("{}\n{}\n", sheet(svid, now), svid.token)).collect::<Vec<_>>().join("\n")
        })
    }
}

fn jwt_document(wire: &wire::Jwtsvid) -> Outcome<TokenSvid> {
    let svid = JwtSvid::parse(&wire.svid)
        .map_err(|error| Failure::Refused(format!("the agent sent a JWT-SVID that is none: {error}")))?;
    Ok(TokenSvid {
        spiffe_id: svid.id().to_string(),
        hint: wire.hint.clone(),
        audience: Some(svid.audience().to_vec()),
        expires_at: Moment(svid.expires_at().unix()),
        token: wire.svid.clone(),
        key: None,
    })
}

#[derive(Debug, Args)]
pub(crate) struct Wit {
    #[command(flatten)]
    fetch: Fetch,
    /// Of this identity alone.
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Print the private keys, too: a JWK each.
    #[arg(long)]
    keys: bool,
}

impl Wit {
    /// Does it.
    pub(crate) async fn run(self, output: Output) -> Outcome {
        let id = self.spiffe_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let take = |answer: &wire::WitsvidResponse| self.take(answer, output);
        self.fetch.each(async |workload: &mut Workload| workload.wit(id.clone()).await, take).await
    }

    fn take(&self, answer: &wire::WitsvidResponse, output: Output) -> Outcome {
        let svids = answer.svids.iter().map(|svid| wit_document(svid, self.keys)).collect::<Outcome<Vec<_>>>()?;
        if let Some(folder) = &self.fetch.write {
            for (at, svid) in answer.svids.iter().enumerate() {
                let name = |name| with_suffix(name, &suffix(at));
                files::write(folder, &name("key.jwk"), PRIVATE, svid.wit_svid_key.as_bytes())?;
                files::write(folder, &name("svid.wit"), PUBLIC, svid.wit_svid.as_bytes())?;
            }
        }
        let now = moments::now();
        let document = WitSvids { svids };
        if self.fetch.watch {
            let line = |svid: &TokenSvid| {
                format!("{now}  {}  {}", plain(&svid.spiffe_id), moments::expiry(svid.expires_at.0, now))
            };
            let lines = || document.svids.iter().map(line).collect::<Vec<_>>().join("\n");
            return output.show_line(&document, lines);
        }
        output.show(&document, || {
            let mut text = document.svids.iter().map(|svid| wit_text(svid, now)).collect::<Vec<_>>().join("\n");
            if let Some(folder) = &self.fetch.write {
                text.push_str(&format!("\nwritten to {}\n", plain(&folder.display().to_string())));
            }
            text
        })
    }
}

fn wit_document(wire: &wire::Witsvid, with_key: bool) -> Outcome<TokenSvid> {
    let svid = WitSvid::parse(&wire.wit_svid)
        .map_err(|error| Failure::Refused(format!("the agent sent a WIT-SVID that is none: {error}")))?;
    Ok(TokenSvid {
        spiffe_id: svid.id().to_string(),
        hint: wire.hint.clone(),
        audience: None,
        expires_at: Moment(svid.expires_at().unix()),
        token: wire.wit_svid.clone(),
        key: with_key.then(|| wire.wit_svid_key.clone()),
    })
}

fn wit_text(svid: &TokenSvid, now: Timestamp) -> String {
    let key = svid.key.as_ref().map(|key| format!("{key}\n")).unwrap_or_default();
    format!("{}\n{}\n{key}", sheet(svid, now), svid.token)
}

fn sheet(svid: &TokenSvid, now: Timestamp) -> String {
    let expires_at = svid.expires_at.0;
    Sheet::default()
        .line("spiffe id", &svid.spiffe_id)
        .line("hint", &svid.hint)
        .line("audience", svid.audience.as_ref().map(|audience| audience.join(" ")).unwrap_or_default())
        .line("expires", format!("{} ({})", moments::expires(expires_at, now), Timestamp::from_unix(expires_at)))
        .text()
}

/// Takes JWK sets by the SPIFFE IDs of their trust domains.
pub(crate) fn take_bundles<'a>(
    bundles: impl Iterator<Item = (&'a str, String)>,
    (kind, fetch): (&str, &Fetch),
    output: Output,
) -> Outcome {
    let one = |(id, document): (&str, String)| {
        // Parsed, because it becomes the name of a file.
        let name = TrustDomain::parse(id)
            .map_err(|error| Failure::Refused(format!("the agent named the trust domain {}: {error}", plain(id))))?;
        let keys = serde_json::from_str(&document)
            .map_err(|error| Failure::Refused(format!("the agent sent a JWK set that is none: {error}")))?;
        Ok((name.to_string(), keys))
    };
    let bundles = bundles.map(one).collect::<Outcome<BTreeMap<String, serde_json::Value>>>()?;
    let pretty = |keys: &serde_json::Value| format!("{keys:#}");
    if let Some(folder) = &fetch.write {
        for (name, keys) in &bundles {
            files::write(folder, &format!("bundle.{name}.{kind}.json"), PUBLIC, pretty(keys).as_bytes())?;
        }
    }
    let document = JwkSets { bundles };
    if fetch.watch {
        let names = || document.bundles.keys().cloned().collect::<Vec<_>>().join(", ");
        return output.show_line(&document, || format!("{}  {}", moments::now(), names()));
    }
    output.show(&document, || match &fetch.write {
        Some(folder) => {
            format!("{} JWK sets written to {}", document.bundles.len(), plain(&folder.display().to_string()))
        }
        None => document.bundles.iter().map(|(name, keys)| format!("{name}\n{}\n", pretty(keys))).collect(),
    })
}
