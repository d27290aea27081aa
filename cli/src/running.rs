//! What the verbs that run for long share: stopping when they are told to.

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Failure, Outcome};

/// Returns when the process is told to stop, by ctrl-C or SIGTERM. A second time it stops at once.
pub(crate) async fn told_to_stop() -> Outcome {
    let failed = |error| Failure::Refused(format!("signals cannot be received: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}
