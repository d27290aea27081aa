//! `kind = "haproxy"`: chain and key, and the roots, over the runtime API: no reload, no connection lost.
//!
//! - *no success that is none*: a certificate that HAProxy holds and no line of its config uses can be committed, with
//!   "Success!" and without any effect. HAProxy 2.6 itself comes to that after commits of a CA file. It is asked first.
//! - What was set and could not be committed is aborted, so that the next attempt begins anew.
//! - Each command has a connection of its own: HAProxy ends it behind its answer.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::{ActionError, Context, failed, shown};
use crate::deliver::render::pem;

/// More than any answer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// What HAProxy is to be told, by the names that it has for the files.
pub(super) struct Told<'a> {
    pub(super) certificate: Option<&'a str>,
    pub(super) ca_file: Option<&'a str>,
}

/// Tells it.
pub(super) async fn tell(socket: &Path, told: Told<'_>, context: Context<'_>) -> Result<(), ActionError> {
    let identity = &context.material.identity;
    // The certificate first: it is the one that ends soon.
    if let Some(name) = told.certificate {
        replace(socket, "cert", name, &pem::combined(identity)).await?;
    }
    if let Some(name) = told.ca_file {
        replace(socket, "ca-file", name, pem::certificates(identity.own_roots()).as_bytes()).await?;
    }
    Ok(())
}

/// `set` and `commit`; `kind`: `cert` or `ca-file`.
async fn replace(socket: &Path, kind: &str, name: &str, pem: &[u8]) -> Result<(), ActionError> {
    let refused = |doing, answer: &str| ActionError::Haproxy { doing, name: name.to_owned(), words: shown(answer) };
    let held = ask(socket, format!("show ssl {kind} {name}\n").as_bytes()).await?;
    if held.contains("Status: Unused") {
        return Err(refused("use", "it holds the file, and no line of its config uses it now: reload HAProxy"));
    }
    // The text ends with the first empty line: there is none in PEM as we write it.
    let set = Zeroizing::new([format!("set ssl {kind} {name} <<\n").as_bytes(), pem, b"\n"].concat());
    let answer = ask(socket, &set).await?;
    if !["transaction created", "transaction updated"].iter().any(|good| answer.to_lowercase().contains(good)) {
        return Err(refused("take", &answer));
    }
    let answer = ask(socket, format!("commit ssl {kind} {name}\n").as_bytes()).await?;
    if answer.contains("Success") {
        return Ok(());
    }
    // Whether it is aborted or not: the first answer is the one to tell.
    let _ = ask(socket, format!("abort ssl {kind} {name}\n").as_bytes()).await;
    Err(refused("commit", &answer))
}

async fn ask(socket: &Path, command: &[u8]) -> Result<String, ActionError> {
    let failed = |doing| move |error| failed(doing, socket, error);
    let mut stream = UnixStream::connect(socket).await.map_err(failed("connect to HAProxy's socket"))?;
    stream.write_all(command).await.map_err(failed("write to HAProxy's socket"))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await.map_err(failed("read from HAProxy's socket"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
