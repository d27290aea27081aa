//! `chancery healthcheck`: for probes of containers and scripts.
//!
//! - Who is not there yet, or not ready yet, is asked again until the time is up; then the last answer is told.
//! - What does not change by waiting (no permission, somebody else's port) is told at once.

use std::time::Duration;

use clap::{ArgGroup, Args};
use spiffe::settings::write_duration;
use spiffe::time::{Clock as _, System};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use crate::args::Globals;
use crate::documents::Health;
use crate::exit::{Failure, Outcome};
use crate::moments;
use crate::output::plain;
use crate::workload::{self, Workload};

/// How long after a failure the next question is asked.
const PAUSE: Duration = Duration::from_millis(250);
const SERVER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than an agent waits before it says why it has no answer (10s, its `limits.first_answer`).
const AGENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Ask a server or an agent whether it is ready, again and again until it is or the time is up: exit code 0 if it
/// is, 1 if not, 3 if nobody answers.
#[derive(Debug, Args)]
#[group(skip)]
#[command(after_help = "\
Examples:
  chancery healthcheck --health 127.0.0.1:8444
  chancery healthcheck --workload-socket /run/chancery/workload.sock --timeout 60s")]
#[command(group(ArgGroup::new("whom").required(true).args(["health", "workload_socket"])))]
pub(crate) struct Healthcheck {
    /// Ask a server, or an agent: its health address, host:port.
    #[arg(long, value_name = "HOST:PORT")]
    health: Option<String>,
    /// With --health: ask only whether the process answers, ready or not, as a probe does that would end it.
    #[arg(long, conflicts_with = "workload_socket")]
    live: bool,
    /// Ask an agent: the socket of its Workload API.
    #[arg(long, value_name = "ADDRESS")]
    workload_socket: Option<String>,
    /// For how long to ask until it is ready: 10s for a server and 15s for an agent where it is not given.
    #[arg(long, value_name = "DURATION", value_parser = moments::parse_some_time)]
    timeout: Option<Duration>,
}

/// Why somebody is not ready.
enum Unready {
    /// That may change.
    Yet(Failure),
    /// That stays so until somebody does something.
    Ever(Failure),
}

impl From<Failure> for Unready {
    fn from(failure: Failure) -> Self {
        if matches!(failure, Failure::Unreachable(_)) { Self::Yet(failure) } else { Self::Ever(failure) }
    }
}

/// Asks until the answer is yes, or will be no for ever, or the time is up.
async fn until_ready(of: &str, timeout: Duration, ask: impl AsyncFn() -> Result<(), Unready>) -> Outcome {
    let mut last = None;
    let asking = async {
        loop {
            match ask().await {
                Ok(()) => return Ok(()),
                Err(Unready::Ever(failure)) => return Err(failure),
                Err(Unready::Yet(failure)) => last = Some(failure),
            }
            System.sleep(PAUSE).await;
        }
    };
    #[expect(clippy::disallowed_methods, reason = "input and output: whoever is asked may not answer")]
    if let Ok(outcome) = tokio::time::timeout(timeout, asking).await {
        return outcome;
    }
    let time = write_duration(timeout);
    let tried = |text: String| format!("{text} (asked for {time}; --timeout waits longer)");
    Err(match last {
        None => Failure::Unreachable(format!("{} did not answer within {time}", plain(of))),
        Some(Failure::Refused(text)) => Failure::Refused(tried(text)),
        Some(failure) => Failure::Unreachable(tried(failure.to_string())),
    })
}

impl Healthcheck {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let of = match (&self.health, &self.workload_socket) {
            (Some(address), _) => {
                let page = if self.live { "/live" } else { "/ready" };
                until_ready(address, self.timeout.unwrap_or(SERVER_TIMEOUT), async || server(address, page).await)
                    .await?;
                address
            }
            (None, Some(socket)) => {
                until_ready(socket, self.timeout.unwrap_or(AGENT_TIMEOUT), async || agent(socket).await).await?;
                socket
            }
            (None, None) => return Err(Failure::Usage("name whom to ask: --health or --workload-socket".into())),
        };
        let word = if self.live { "live" } else { "ready" };
        let health = Health { live: true, ready: (!self.live).then_some(true), of: of.clone() };
        globals.output.show(&health, || word.into())
    }
}

/// One small HTTP/1.1 request by hand: what answers on the loopback is our own server.
async fn server(address: &str, page: &str) -> Result<(), Unready> {
    let unreachable =
        |error: std::io::Error| Failure::Unreachable(format!("no server answers at {}: {error}", plain(address)));
    let mut stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let request = format!("GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(unreachable)?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer).await.map_err(unreachable)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some(_) => {
            let text = format!("{} is not ready: {}", plain(address), plain(body.trim()));
            Err(Unready::Yet(Failure::Refused(text)))
        }
        None => {
            let text = format!("what answers at {} is no health address of ours", plain(address));
            Err(Unready::Ever(Failure::Refused(text)))
        }
    }
}

/// An agent is ready when its Workload API answers; that this process has no identity is an answer.
async fn agent(socket: &str) -> Result<(), Unready> {
    let mut workload = Workload::connect(Some(socket)).await?;
    let answer = match workload.bundles().await {
        Ok(mut stream) => stream.message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    match answer {
        Err(status) if status.code() != Code::PermissionDenied => Err(workload::failure(&status).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(answer: &'static str) -> Outcome {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /ready HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let outcome =
            until_ready(&address, Duration::from_millis(200), async || server(&address, "/ready").await).await;
        answering.await.unwrap();
        outcome
    }

    #[tokio::test]
    async fn a_server_is_ready_or_says_why_not() {
        asked("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        let failure = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nthe store is not there\n").await.unwrap_err();
        assert_eq!(failure.exit(), 1);
        assert!(failure.to_string().contains("is not ready: the store is not there (asked for 200ms;"), "{failure}");
        assert_eq!(asked("hello").await.unwrap_err().exit(), 1);
        let nobody = "127.0.0.1:1";
        let failure =
            until_ready(nobody, Duration::from_millis(10), async || server(nobody, "/ready").await).await.unwrap_err();
        assert_eq!(failure.exit(), 3);
        assert!(failure.to_string().starts_with("no server answers at 127.0.0.1:1: "), "{failure}");
    }

    #[tokio::test]
    async fn who_is_not_there_yet_is_asked_again() {
        let asked = std::cell::Cell::new(0);
        let third = async || {
            asked.set(asked.get() + 1);
            if asked.get() < 3 { Err(Failure::Unreachable("nobody".into()).into()) } else { Ok(()) }
        };
        until_ready("it", Duration::from_secs(30), third).await.unwrap();
        assert_eq!(asked.get(), 3);
        let never = async || Err(Failure::Refused("not yours".into()).into());
        let failure = until_ready("it", Duration::from_secs(30), never).await.unwrap_err();
        assert_eq!(failure.to_string(), "not yours", "at once");
    }
}
