//! A pod on which answers rest, as long as what was found of it is true.
//!
//! - A label that is taken away, or any other change of what is true of the pod, ends it: whoever rests on it is to ask again, and
//!   gets what he may have now.
//! - A pod as a whole ends with its phase, or when the time is over that its containers have to end once it is deleted. A process
//!   in it ends with itself, and with the pod's object.

use std::sync::Arc;

use spiffe::selector::{MAX_SELECTORS, Selector, Selectors};
use spiffe::time::{Clock, Timestamp};
use tokio::sync::watch::Receiver;

use super::object::Life;
use super::pods::Pods;

/// What is true of one container alone.
const OF_CONTAINERS: [&str; 3] = ["k8s:container-", "k8s:init-container:", "k8s:ephemeral-container:"];

/// A pod, as long as what was found of it is true.
#[derive(Clone, Debug)]
pub struct Presence {
    pub(super) uid: Arc<str>,
    /// What was found to be true, by this attestor and others.
    pub(super) found: Selectors,
    /// Whether it is the pod as a whole, and no process in it.
    pub(super) is_whole: bool,
    pub(super) pods: Receiver<Arc<Pods>>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Why nothing rests on a pod any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It was deleted, or has ended.
    Gone,
    /// Something else is true of it now.
    Changed,
}

impl Presence {
    /// The UID of the pod.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Returns when it is so no longer, by what was told of pods. Cancel safe.
    pub async fn ended(&self) -> Departure {
        let mut pods = self.pods.clone();
        loop {
            let until = match self.look(&pods.borrow_and_update()) {
                Ok(until) => until,
                Err(why) => return why,
            };
            let over = async {
                match until {
                    Some(until) => self.clock.sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = pods.changed() => if changed.is_err() {
                    // The agent is stopping, and every stream with it.
                    std::future::pending().await
                },
                () = over => return Departure::Gone,
            }
        }
    }

    /// Until when it lasts, by itself.
    fn look(&self, pods: &Pods) -> Result<Option<Timestamp>, Departure> {
        let pod = pods.by_uid(&self.uid).ok_or(Departure::Gone)?;
        // What is not known yet is soon.
        if pods.of_pod(pod).is_some_and(|now| !is_so(&self.found, &now)) {
            return Err(Departure::Changed);
        }
        match pod.life {
            Life::Ended if self.is_whole => Err(Departure::Gone),
            Life::Until(until) if self.is_whole => Ok(Some(until)),
            _ => Ok(None),
        }
    }
}

/// Whether what was `found` of pods is what is true of the pod `now`. Where so much was found that the rest was cut off, only
/// what is true no longer counts.
fn is_so(found: &Selectors, now: &[Selector]) -> bool {
    let is_of_pod = |selector: &&Selector| {
        let text = selector.as_str();
        text.starts_with("k8s:") && !OF_CONTAINERS.iter().any(|prefix| text.starts_with(prefix))
    };
    let is_full = found.len() >= MAX_SELECTORS;
    found.iter().filter(is_of_pod).all(|selector| now.contains(selector))
        && (is_full || now.iter().all(|selector| found.contains(selector)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Selectors {
        Selectors::parse(texts.iter().copied()).unwrap()
    }

    #[test]
    fn what_is_so_of_a_pod_is_neither_its_containers_nor_the_process() {
        let now: Vec<Selector> = of(&["k8s:ns:shop", "k8s:pod-label:app:web"]).iter().cloned().collect();
        let found = ["k8s:container-name:web", "k8s:init-container:true", "k8s:ns:shop", "unix:uid:0"];
        let with = |more: &[&str]| of(&[&found, more].concat());
        assert!(is_so(&with(&["k8s:pod-label:app:web"]), &now));
        assert!(!is_so(&with(&[]), &now), "a label came");
        assert!(!is_so(&with(&["k8s:pod-label:app:web", "k8s:pod-label:tier:gold"]), &now), "a label went");
        let many: Vec<String> = (0..MAX_SELECTORS - 2).map(|n| format!("unix:gid:{n}")).collect();
        let full = |more| of(&[many.iter().map(String::as_str).collect(), vec!["k8s:ns:shop", more]].concat());
        assert!(is_so(&full("unix:uid:0"), &now), "what is missing was cut off");
        assert!(!is_so(&full("k8s:pod-label:tier:gold"), &now));
    }
}
