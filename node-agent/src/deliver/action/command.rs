//! `kind = "command"` and `"systemd"`: a program, without a shell.
//!
//! - Its environment is `PATH` and what it may need to know of the delivery: nothing of ours, where a token may be.
//! - It leads a process group of its own, all of which is killed when it takes too long. Who has ended has not taken too long,
//!   however long what it left running holds its output open.
//! - What it prints goes into our log, the first [`MOST`] bytes of it.

use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tracing::info;

use super::{ActionError, Context, shown, within};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most that is kept of what a program prints, in bytes.
const MOST: usize = 16 << 10;
/// How long what it prints is read after it has ended.
const GRACE: Duration = Duration::from_secs(1);

/// Runs it to its end, for which it has `timeout`. Dropping this before kills it.
pub(super) async fn run(argv: &[String], timeout: Duration, context: Context<'_>) -> Result<(), ActionError> {
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH);
    command.env("CHANCERY_DELIVERY", context.name).env("CHANCERY_DELIVERY_DIR", context.dir);
    command.env("CHANCERY_SPIFFE_ID", context.material.id().as_str());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let failed = |source| super::failed("run", program.as_ref(), source);
    let mut child = command.spawn().map_err(failed)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(|id| Group(Some(Pid::from_raw(id))));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (from_out, from_err) = (child.stdout.take(), child.stderr.take());
    let status;
    {
        let mut reading = pin!(async { tokio::join!(read(from_out, &mut out), read(from_err, &mut err)) });
        let running = async {
            tokio::select! {
                status = child.wait() => (status, false),
                _ = &mut reading => (child.wait().await, true),
            }
        };
        let (ended, is_read) = within(timeout, context.clock, running).await?;
        // At once: it was waited for, and its number may soon be somebody else's.
        if let Some(group) = group {
            group.let_go();
        }
        status = ended;
        if !is_read {
            // What it has left running on purpose may hold the pipes open for ever.
            tokio::select! {
                _ = &mut reading => {}
                () = context.clock.sleep(GRACE) => {}
            }
        }
    }
    let status = status.map_err(failed)?;
    let words = format!("{} {}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
    if !status.success() {
        return Err(ActionError::Program { program: program.clone(), how: how(status), words: shown(&words) });
    }
    if !words.trim().is_empty() {
        info!(delivery = context.name, program, "it printed: {}", shown(&words));
    }
    Ok(())
}

/// Keeps the beginning of what comes; the rest is read and thrown away, so that nobody waits for us.
async fn read(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count.min(MOST.saturating_sub(kept.len()))]);
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".into(),
    }
}

/// The process group of a program that has not ended.
struct Group(Option<Pid>);

impl Group {
    /// It has ended: what it has left running on purpose goes on.
    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Its leader was not waited for: the number is still its own. It may be gone all the same.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}
