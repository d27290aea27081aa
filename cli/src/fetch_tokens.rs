//! `chancery fetch jwt` and `chancery fetch wit`: tokens from the Workload API.

use clap::Args;
use spiffe::id::SpiffeId;
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::workload as wire;
use spiffe::time::Timestamp;
use spiffe::wit_svid::WitSvid;

use crate::documents::{JwtSvids, TokenSvid, WitSvids};
use crate::exit::{Failure, Outcome};
use crate::fetch::{Broken, Fetch, in_time};
use crate::files::{self, PRIVATE, PUBLIC};
use crate::jwt::parse_audience;
use crate::moments::{self, Moment};
use crate::output::{self, Output, Sheet, plain};
use crate::svid_files::{suffix, with_suffix};
use crate::workload::{SOCKET_VARIABLE, Workload};

/// The files of a WIT-SVID: the token, and its private key.
const TOKEN: &str = "svid.wit";
const KEY: &str = "key.jwk";

#[derive(Debug, Args)]
pub(crate) struct Jwt {
    /// For whom the token is; may be repeated, and one is best.
    #[arg(long = "audience", required = true, value_name = "AUDIENCE", value_parser = parse_audience)]
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
        if self.raw && output == Output::Json {
            let text =
                "--raw prints the token and nothing else, --output json a document with it: leave one of them out";
            return Err(Failure::Usage(text.into()));
        }
        let mut workload = Workload::connect(self.workload_socket.as_deref()).await?;
        let id = self.spiffe_id.as_ref();
        let fetched = in_time(async {
            match workload.jwt(self.audiences, id.map(ToString::to_string).unwrap_or_default()).await {
                Ok(svids) => Ok(svids),
                Err(status) => Err(workload.failure_of(&status, id).await),
            }
        });
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
    /// Print the private keys, too: a JWK each. They are on the screen then, and wherever that goes.
    #[arg(long)]
    keys: bool,
}

impl Wit {
    /// Does it.
    pub(crate) async fn run(self, output: Output) -> Outcome {
        let id = self.spiffe_id.as_ref();
        let open =
            async |workload: &mut Workload| match workload.wit(id.map(ToString::to_string).unwrap_or_default()).await {
                Ok(stream) => Ok(stream),
                Err(status) => Err(Broken::said(&status, workload.failure_of(&status, id).await)),
            };
        self.fetch.each(open, |answer: &wire::WitsvidResponse| self.take(answer, output)).await
    }

    fn take(&self, answer: &wire::WitsvidResponse, output: Output) -> Outcome {
        let svids = answer.svids.iter().map(|svid| wit_document(svid, self.keys)).collect::<Outcome<Vec<_>>>()?;
        if let Some(folder) = &self.fetch.write {
            for (at, svid) in answer.svids.iter().enumerate() {
                let name = |name| with_suffix(name, &suffix(at));
                files::write(folder, &name(KEY), PRIVATE, svid.wit_svid_key.as_bytes())?;
                files::write(folder, &name(TOKEN), PUBLIC, svid.wit_svid.as_bytes())?;
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
            let texts = document.svids.iter().map(|svid| match &self.fetch.write {
                Some(_) => sheet(svid, now),
                None => wit_text(svid, now),
            });
            let mut text = texts.collect::<Vec<_>>().join("\n");
            if let Some(folder) = &self.fetch.write {
                text.push_str(&format!("\nwritten to {}\n", plain(&folder.display().to_string())));
                text.push_str(&files_of(&document.svids));
            }
            text
        })
    }
}

/// Which files are whose.
fn files_of(svids: &[TokenSvid]) -> String {
    let line = |sheet: Sheet, (at, svid): (usize, &TokenSvid)| {
        let names = [TOKEN, KEY].map(|name| with_suffix(name, &suffix(at)));
        sheet.line(&format!("  {}", names.join(" ")), &svid.spiffe_id)
    };
    svids.iter().enumerate().fold(Sheet::default(), line).text()
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
