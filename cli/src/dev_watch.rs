//! What `chancery dev` shows while it runs: a line for each renewal of its own identity, and for each step of the
//! CA's rotation.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use spiffe::proto::v1;
use spiffe::time::Timestamp;
use spiffe::x509_svid::X509Svid;

use crate::authority;
use crate::connect::Admin;
use crate::exit::{Failure, Outcome};
use crate::moments::{self, Moment};
use crate::output::{Output, plain};
use crate::workload::{self, Workload};

/// A line of `dev -o json`.
#[derive(Debug, Serialize)]
struct Seen {
    at: Moment,
    what: String,
}

/// Watches until the agent ends the streams. A step of the CA is looked for whenever the agent has news: each
/// concerns the bundle, or is followed by a renewal.
pub(crate) async fn rotations(admin: &mut Admin, socket: &Path, output: Output) -> Outcome {
    let address = socket.display().to_string();
    let mut workload = Workload::connect(Some(&address)).await?;
    let mut identities = workload.x509().await.map_err(|status| workload::failure(&status))?;
    let mut bundles = workload.bundles().await.map_err(|status| workload::failure(&status))?;
    let mut serials = BTreeMap::new();
    let mut states = BTreeMap::new();
    loop {
        let mut lines = Vec::new();
        tokio::select! {
            answer = identities.message() => {
                let answer = answer.map_err(|status| workload::failure(&status))?.ok_or_else(ended)?;
                for wire in &answer.svids {
                    let svid = X509Svid::parse(workload::certificates(&wire.x509_svid)?)
                        .map_err(|error| Failure::Refused(format!("the agent gave an SVID that is none: {error}")))?;
                    lines.extend(renewal(&mut serials, &svid, moments::now()));
                }
            }
            answer = bundles.message() => {
                answer.map_err(|status| workload::failure(&status))?.ok_or_else(ended)?;
            }
        }
        for authority in authority::list(admin).await? {
            lines.extend(step(&mut states, &authority, moments::now()));
        }
        for what in lines {
            let now = moments::now();
            let seen = Seen { at: Moment(now.unix()), what };
            output.show_line(&seen, || format!("{now}  {}", seen.what))?;
        }
    }
}

fn ended() -> Failure {
    Failure::Refused("the agent has stopped by itself: its log says why".into())
}

/// The line for an SVID that was not seen before.
fn renewal(serials: &mut BTreeMap<String, Vec<u8>>, svid: &X509Svid, now: Timestamp) -> Option<String> {
    let before = serials.insert(svid.id().to_string(), svid.serial().to_vec());
    if before.as_deref() == Some(svid.serial()) {
        return None;
    }
    let verb = if before.is_some() { "renewed" } else { "issued " };
    let renews = moments::relative(workload::renewal(svid), now);
    let expiry = moments::expiry(svid.lifetime().not_after.unix(), now);
    let serial = spiffe::crypto::hex(svid.serial());
    Some(format!("{verb} {}  serial {serial}  renews {renews}, {expiry}", svid.id()))
}

/// The line for an authority in a state in which it was not seen before.
fn step(states: &mut BTreeMap<String, String>, authority: &v1::Authority, now: Timestamp) -> Option<String> {
    let state = if authority.tainted { format!("{}, tainted", authority.state) } else { authority.state.clone() };
    let before = states.insert(authority.id.clone(), state.clone());
    if before.as_deref() == Some(state.as_str()) {
        return None;
    }
    let next = authority::next(authority, now);
    let next = if next.is_empty() { next } else { format!(", {next}") };
    let expiry = moments::expiry(authority.not_after, now);
    Some(format!("CA {} is {}{next}, {expiry}", plain(&authority.id), plain(&state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_ca_is_told_once() {
        let now = Timestamp::from_unix(1_000);
        let mut states = BTreeMap::new();
        let prepared = v1::Authority {
            id: "a2".into(),
            state: "prepared".into(),
            not_after: 1_120,
            next_change_at: 1_020,
            ..v1::Authority::default()
        };
        assert_eq!(
            step(&mut states, &prepared, now).as_deref(),
            Some("CA a2 is prepared, signs in 20s, expires in 2m")
        );
        assert_eq!(step(&mut states, &prepared, now), None);
        let active = v1::Authority { state: "active".into(), next_change_at: 0, ..prepared };
        assert_eq!(step(&mut states, &active, now).as_deref(), Some("CA a2 is active, expires in 2m"));
    }
}
