//! `chancery healthcheck`: for probes of containers and scripts.

use std::time::Duration;

use clap::{ArgGroup, Args};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use crate::args::Globals;
use crate::documents::Health;
use crate::exit::{Failure, Outcome};
use crate::output::plain;
use crate::workload::{self, Workload};

/// Ask a server or an agent whether it is ready: exit code 0 if it is, 1 if not, 3 if nobody answers.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group(ArgGroup::new("whom").required(true).args(["health", "workload_socket"])))]
pub(crate) struct Healthcheck {
    /// Ask a server: its health address, host:port.
    #[arg(long, value_name = "HOST:PORT")]
    health: Option<String>,
    /// Ask an agent: the socket of its Workload API.
    #[arg(long, value_name = "ADDRESS")]
    workload_socket: Option<String>,
    /// For how long to wait for the answer.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = spiffe::settings::parse_duration)]
    timeout: Duration,
}

impl Healthcheck {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let (of, check) = match (&self.health, &self.workload_socket) {
            (Some(address), _) => (address, futures_util::future::Either::Left(server(address))),
            (None, Some(socket)) => (socket, futures_util::future::Either::Right(agent(socket))),
            (None, None) => return Err(Failure::Usage("name whom to ask: --health or --workload-socket".into())),
        };
        #[expect(clippy::disallowed_methods, reason = "input and output: whoever is asked may not answer")]
        tokio::time::timeout(self.timeout, check)
            .await
            .map_err(|_| Failure::Unreachable(format!("{} did not answer within {:?}", plain(of), self.timeout)))??;
        globals.output.show(&Health { ready: true, of: of.clone() }, || "ready".into())
    }
}

/// One small HTTP/1.1 request by hand: what answers on the loopback is our own server.
async fn server(address: &str) -> Outcome {
    let unreachable =
        |error: std::io::Error| Failure::Unreachable(format!("no server answers at {}: {error}", plain(address)));
    let mut stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let request = format!("GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(unreachable)?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer).await.map_err(unreachable)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some(_) => Err(Failure::Refused(format!("{} is not ready: {}", plain(address), plain(body.trim())))),
        None => Err(Failure::Refused(format!("what answers at {} is no health address of ours", plain(address)))),
    }
}

/// An agent is ready when its Workload API answers; that this process has no identity is an answer.
async fn agent(socket: &str) -> Outcome {
    let mut workload = Workload::connect(Some(socket)).await?;
    let answer = match workload.bundles().await {
        Ok(mut stream) => stream.message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    match answer {
        Err(status) if status.code() != Code::PermissionDenied => Err(workload::failure(&status)),
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
        let outcome = server(&address).await;
        answering.await.unwrap();
        outcome
    }

    #[tokio::test]
    async fn a_server_is_ready_or_says_why_not() {
        asked("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        let failure = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nthe store is not there\n").await.unwrap_err();
        assert_eq!(failure.exit(), 1);
        assert!(failure.to_string().ends_with("is not ready: the store is not there"), "{failure}");
        assert_eq!(asked("hello").await.unwrap_err().exit(), 1);
        let failure = server("127.0.0.1:1").await.unwrap_err();
        assert_eq!(failure.exit(), 3);
    }
}
