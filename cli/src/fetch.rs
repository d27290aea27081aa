//! `chancery fetch`: what this process gets from the Workload API, to the screen or to files.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use spiffe::proto::workload as wire;
use spiffe::time::{Backoff, Clock as _, System, Timestamp};
use spiffe::x509_svid::X509Svid;
use tonic::{Code, Status, Streaming};

use crate::args::Globals;
use crate::documents::{Svid, Svids};
use crate::exit::{Failure, Outcome};
use crate::fetch_bundle::{foreign, write_bundles};
use crate::files;
use crate::moments::{self, Moment};
use crate::output::{self, Output, Sheet, plain};
use crate::svid_files::{BUNDLE, KEY, PemSvid, SVID, suffix, with_suffix};
use crate::workload::{self, SOCKET_VARIABLE, Workload};
use crate::{fetch_bundle, fetch_tokens};

/// The agent itself gives up after ten seconds, and says why.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What can be fetched.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Fetch the X.509-SVIDs of this process, the default identity first.
    #[command(after_help = "\
Examples:
  chancery fetch x509
  chancery fetch x509 --write ./me
  chancery fetch x509 --watch

Files with --write: svid.pem, key.pem (readable by you alone) and bundle.pem of the default identity; those of
further identities as svid.2.pem, key.2.pem, bundle.2.pem, and so on; bundle.<trust domain>.pem of each foreign
trust domain. Each is replaced whole.")]
    X509(X509),
    /// Fetch a JWT-SVID for an audience, of each identity of this process.
    #[command(after_help = "\
Examples:
  chancery fetch jwt --audience https://api.example.org
  chancery fetch jwt --audience https://api.example.org --spiffe-id spiffe://example.org/web --raw

To call something that takes bearer tokens:
  curl -H \"Authorization: Bearer $(chancery fetch jwt --audience https://api.example.org --raw)\" ...")]
    Jwt(fetch_tokens::Jwt),
    /// Fetch the WIT-SVIDs of this process, the default identity first.
    #[command(after_help = "\
Examples:
  chancery fetch wit
  chancery fetch wit --write ./me --watch

A WIT-SVID is worth nothing without its private key. The agent makes that key and hands it out with the token: without
--write it is written nowhere, and shown with --keys only. With --write FOLDER it goes to key.jwk there, readable by you
alone (mode 0600), and the token to svid.wit; those of further identities to key.2.jwk and svid.2.wit, and so on. Each
file is replaced whole.")]
    Wit(fetch_tokens::Wit),
    /// Fetch the trust bundles that this process gets.
    #[command(after_help = "\
Examples:
  chancery fetch bundle --write ./trust
  chancery fetch bundle --kind jwt --trust-domain example.org > keys.json

Files with --write: bundle.<trust domain>.pem of each trust domain; with --kind jwt or wit, bundle.<trust domain>.jwt.json
or bundle.<trust domain>.wit.json. On the screen: PEM, or with --kind jwt or wit a JWK set; of several trust domains one
after the other.")]
    Bundle(fetch_bundle::FetchBundle),
}

#[derive(Debug, Args)]
pub(crate) struct X509 {
    #[command(flatten)]
    fetch: Fetch,
    /// Print certificates, private keys and bundles, instead of about them.
    #[arg(long)]
    pem: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The socket of the Workload API.
    #[arg(long, env = SOCKET_VARIABLE, value_name = "ADDRESS")]
    workload_socket: Option<String>,
    /// The folder to write files to.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) write: Option<PathBuf>,
    /// Keep going, and print a line at each change.
    #[arg(long)]
    pub(crate) watch: bool,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        match self {
            Self::X509(x509) => {
                let take = |answer: &_| take_x509(answer, &x509, globals.output);
                x509.fetch.each(async |workload: &mut Workload| Ok(workload.x509().await?), take).await
            }
            Self::Jwt(jwt) => jwt.run(globals.output).await,
            Self::Wit(wit) => wit.run(globals.output).await,
            Self::Bundle(bundle) => bundle.run(globals.output).await,
        }
    }
}

impl Fetch {
    /// Opens the stream and hands its answers to `take`: the first one, or, with `--watch`, all of them, for as
    /// long as this process lives, however often the agent goes away.
    pub(crate) async fn each<T>(
        &self,
        open: impl AsyncFn(&mut Workload) -> Result<Streaming<T>, Broken>,
        mut take: impl FnMut(&T) -> Outcome,
    ) -> Outcome {
        if let Some(folder) = &self.write {
            files::make_private_folder(folder)?;
        }
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(15));
        loop {
            let Broken { failure, again } = match self.stream(&open).await {
                Ok((mut stream, first)) => {
                    take(&first)?;
                    if !self.watch {
                        return Ok(());
                    }
                    backoff.reset();
                    loop {
                        match stream.message().await {
                            Ok(Some(answer)) => take(&answer)?,
                            Ok(None) => break ended().into(),
                            Err(status) => break status.into(),
                        }
                    }
                }
                Err(broken) => broken,
            };
            if !self.watch || !again {
                return Err(failure);
            }
            let chance = spiffe::crypto::random().map_or(0, u32::from_be_bytes);
            let pause = backoff.after_failure(chance);
            output::remark(&format!("{}  {failure}; trying again", moments::now()));
            System.sleep(pause).await;
        }
    }

    async fn stream<T>(
        &self,
        open: &impl AsyncFn(&mut Workload) -> Result<Streaming<T>, Broken>,
    ) -> Result<(Streaming<T>, T), Broken> {
        let mut workload = Workload::connect(self.workload_socket.as_deref()).await?;
        let first = async {
            let mut stream = open(&mut workload).await?;
            let first = stream.message().await?.ok_or_else(ended)?;
            Ok((stream, first))
        };
        in_time(first).await
    }
}

fn ended() -> Failure {
    Failure::Unreachable("the agent ended the stream".into())
}

/// Why a stream does not come, or goes no further.
pub(crate) struct Broken {
    failure: Failure,
    /// Whether another attempt could do better.
    again: bool,
}

impl Broken {
    /// By `status`, which is said in the words of `failure`.
    pub(crate) fn said(status: &Status, failure: Failure) -> Self {
        // SPIFFE_Workload_Endpoint.md appendix A says after which codes a client does not try again: they are its own
        // mistake, or an agent that does not know the call.
        let again = !matches!(status.code(), Code::InvalidArgument | Code::Unimplemented);
        Self { failure, again }
    }
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::said(&status, workload::failure(&status))
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self { again: !matches!(failure, Failure::Usage(_)), failure }
    }
}

/// What the agent answers, if it does so soon.
pub(crate) async fn in_time<T, E: From<Failure>>(answer: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    #[expect(clippy::disallowed_methods, reason = "input and output: an agent that does not answer")]
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    answer.map_err(|_| Failure::Unreachable(format!("the agent did not answer within {ANSWER_TIMEOUT:?}")))?
}

/// One identity, parsed.
struct Fetched {
    svid: X509Svid,
    hint: String,
    pem: PemSvid,
}

impl Fetched {
    fn parse(wire: &wire::X509svid) -> Outcome<Self> {
        let svid = X509Svid::parse(workload::certificates(&wire.x509_svid)?)
            .map_err(|error| Failure::Refused(format!("the agent sent an SVID that is none: {error}")))?;
        let roots = workload::certificates(&wire.bundle)?;
        let pem =
            PemSvid::new(svid.chain().iter().map(AsRef::as_ref), &wire.x509_svid_key, roots.iter().map(AsRef::as_ref));
        Ok(Self { svid, hint: wire.hint.clone(), pem })
    }

    fn document(&self, with_key: bool) -> Svid {
        Svid {
            spiffe_id: self.svid.id().to_string(),
            hint: self.hint.clone(),
            serial: spiffe::crypto::hex(self.svid.serial()),
            not_before: Moment(self.svid.lifetime().not_before.unix()),
            not_after: Moment(self.svid.lifetime().not_after.unix()),
            svid: self.pem.svid.clone(),
            key: with_key.then(|| self.pem.key.to_string()),
            bundle: self.pem.bundle.clone(),
        }
    }

    fn sheet(&self, now: Timestamp) -> String {
        let not_after = self.svid.lifetime().not_after;
        Sheet::default()
            .line("spiffe id", self.svid.id().as_str())
            .line("hint", &self.hint)
            .line("serial", spiffe::crypto::hex(self.svid.serial()))
            .line("expires", format!("{} ({not_after})", moments::expires(not_after.unix(), now)))
            .line("renews", moments::relative(workload::renewal(&self.svid), now))
            .text()
    }

    fn line(&self, now: Timestamp) -> String {
        let serial = spiffe::crypto::hex(self.svid.serial());
        let expiry = moments::expiry(self.svid.lifetime().not_after.unix(), now);
        let renewal = moments::relative(workload::renewal(&self.svid), now);
        format!("{now}  {}  serial {serial}  renews {renewal}, {expiry}", self.svid.id())
    }
}

fn take_x509(answer: &wire::X509svidResponse, x509: &X509, output: Output) -> Outcome {
    let fetched = answer.svids.iter().map(Fetched::parse).collect::<Outcome<Vec<_>>>()?;
    let foreign = foreign(&answer.federated_bundles)?;
    let Fetch { write, watch, .. } = &x509.fetch;
    if let Some(folder) = write {
        for (at, fetched) in fetched.iter().enumerate() {
            fetched.pem.write(folder, &suffix(at))?;
        }
        write_bundles(folder, &foreign)?;
    }
    let now = moments::now();
    let document =
        Svids { svids: fetched.iter().map(|fetched| fetched.document(x509.pem)).collect(), federated_bundles: foreign };
    if *watch {
        let lines = || fetched.iter().map(|fetched| fetched.line(now)).collect::<Vec<_>>().join("\n");
        return output.show_line(&document, lines);
    }
    output.show(&document, || {
        if x509.pem {
            return fetched.iter().map(|fetched| fetched.pem.text().to_string()).collect();
        }
        let mut text = fetched.iter().map(|fetched| fetched.sheet(now)).collect::<Vec<_>>().join("\n");
        if let Some(folder) = write {
            text.push_str(&format!("\nwritten to {}\n", plain(&folder.display().to_string())));
            if fetched.len() > 1 {
                text.push_str(&files_of(&fetched));
            }
        }
        text
    })
}

/// Which files are whose.
fn files_of(fetched: &[Fetched]) -> String {
    let line = |sheet: Sheet, (at, fetched): (usize, &Fetched)| {
        let names = [SVID, KEY, BUNDLE].map(|name| with_suffix(name, &suffix(at)));
        sheet.line(&format!("  {}", names.join(" ")), fetched.svid.id().as_str())
    };
    fetched.iter().enumerate().fold(Sheet::default(), line).text()
}
#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn who_asks_wrongly_does_not_ask_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let _agent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let fetch = Fetch { workload_socket: Some(socket.display().to_string()), write: None, watch: true };
        for (last, code) in [(Code::InvalidArgument, 1), (Code::Unimplemented, 1)] {
            let asked = Cell::new(0);
            let open = async |_: &mut Workload| -> Result<Streaming<wire::X509svidResponse>, Broken> {
                asked.set(asked.get() + 1);
                // At first it has no identity yet, which may come.
                Err(Status::new(if asked.get() == 1 { Code::PermissionDenied } else { last }, "no").into())
            };
            let failure = fetch.each(open, |_| Ok(())).await.unwrap_err();
            assert_eq!((failure.exit(), asked.get()), (code, 2), "{failure}");
        }
    }
}
