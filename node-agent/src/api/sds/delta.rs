//! A stream of SDS as deltas: requests and states go in, responses come out. Pure.
//!
//! - *first*: what a proxy already has in the present version (`initial_resource_versions`) is not sent again. A first request
//!   that subscribes to nothing, and the name `*`, subscribe to everything.
//! - *subscription*: a name that is subscribed to is sent, again if need be: the proxy may have forgotten it. One that is
//!   unsubscribed from is not sent any more, without a word.
//! - *change*: a state is answered with what is subscribed to and has changed, and only with that.
//! - *removal*: with everything, what is not there any more is named as removed. A name that is unsubscribed from is sent
//!   again there, or named as removed: the proxy cannot know which of both it is.
//! - *reply*: neither an acknowledgement nor a rejection is answered. What was rejected is not sent again; the next change of
//!   it is.
//! - *stale*: a nonce other than the last one says nothing; what a request subscribes to counts all the same.
//! - *nonce*: no two responses of a stream bear the same.
//! - *refusal*: another type, too many names, and names that the workload may not have (any more) end the stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spiffe::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use spiffe::time::Timestamp;

use super::client::Client;
use super::dialogue::{Dialogue, Heard, News, check_type};
use super::names::{MAX_NAMES, Wanted, parse_names};
use super::secrets::{Form, Secret};
use super::{Refusal, SECRET_TYPE, secrets};
use crate::cache::WorkloadState;
use crate::config::sds::Sds;
use crate::status::words;

/// Subscribes to everything.
const WILDCARD: &str = "*";

/// See the head of this file.
#[derive(Debug)]
pub struct Delta {
    config: Arc<Sds>,
    state: Option<WorkloadState>,
    /// `None`: the proxy has not said anything yet.
    client: Option<Client>,
    everything: bool,
    names: BTreeSet<String>,
    /// What was last sent, or was there before, by name.
    versions: BTreeMap<String, String>,
    /// Of the last response.
    sent: Option<Sent>,
    nonces: u64,
}

#[derive(Debug)]
struct Sent {
    version: String,
    nonce: String,
}

impl Delta {
    /// A stream on which nothing has been said.
    pub fn new(config: Arc<Sds>) -> Self {
        Self {
            config,
            state: None,
            client: None,
            everything: false,
            names: BTreeSet::new(),
            versions: BTreeMap::new(),
            sent: None,
            nonces: 0,
        }
    }

    fn begin(&mut self, client: Client, subscribe: &BTreeSet<String>, initial: BTreeMap<String, String>) {
        self.client = Some(client);
        self.everything = subscribe.is_empty();
        self.versions = initial;
    }

    fn subscribe(&mut self, mut subscribe: BTreeSet<String>, unsubscribe: &BTreeSet<String>) -> Result<(), Refusal> {
        self.everything |= subscribe.remove(WILDCARD);
        self.everything &= !unsubscribe.contains(WILDCARD);
        self.names.retain(|name| !unsubscribe.contains(name));
        self.names.extend(subscribe);
        if self.names.len() > MAX_NAMES {
            return Err(Refusal::TooManyNames(self.names.len()));
        }
        if self.everything {
            let unknown = unsubscribe.iter().filter(|name| *name != WILDCARD).map(|name| (name.clone(), String::new()));
            self.versions.extend(unknown);
        } else {
            self.versions.retain(|name, _| self.names.contains(name));
        }
        Ok(())
    }

    /// What is there now and has changed; `None`: nothing.
    fn answer(&mut self, now: Timestamp) -> Result<Option<DeltaDiscoveryResponse>, Refusal> {
        let (Some(state), Some(client)) = (&self.state, &self.client) else { return Ok(None) };
        let given = self.versions.keys().cloned().collect();
        let form = Form { config: &self.config, validation: client.validation, given: &given };
        let mut there = Vec::new();
        if !self.names.is_empty() {
            there = secrets::select(state, &Wanted::Names(self.names.clone()), form, now)?;
        }
        if self.everything {
            let named = |secret: &Secret<'_>| self.names.contains(&secret.name);
            there.extend(secrets::select(state, &Wanted::Everything, form, now)?.into_iter().filter(|it| !named(it)));
        }
        there.sort_by(|one, other| one.name.cmp(&other.name));
        let versions: BTreeMap<String, String> =
            there.iter().map(|secret| (secret.name.clone(), secret.version())).collect();
        let removed: Vec<String> = self.versions.keys().filter(|name| !versions.contains_key(*name)).cloned().collect();
        let changed = there.into_iter().filter(|secret| self.versions.get(&secret.name) != versions.get(&secret.name));
        let resource = |secret: Secret<'_>| Resource {
            version: versions.get(&secret.name).cloned().unwrap_or_default(),
            resource: secret.packed(),
            name: secret.name,
        };
        let resources: Vec<Resource> = changed.map(resource).collect();
        self.versions = versions;
        if resources.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        self.nonces += 1;
        let (version, nonce) = (self.version_of_all(), self.nonces.to_string());
        self.sent = Some(Sent { version: version.clone(), nonce: nonce.clone() });
        Ok(Some(DeltaDiscoveryResponse {
            system_version_info: version,
            resources,
            type_url: SECRET_TYPE.into(),
            nonce,
            removed_resources: removed,
        }))
    }

    fn version_of_all(&self) -> String {
        secrets::version_of(self.versions.iter().map(|(name, version)| (name.as_str(), version.as_str())))
    }
}

impl Dialogue for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn hear(
        &mut self,
        request: DeltaDiscoveryRequest,
        now: Timestamp,
    ) -> Result<Heard<DeltaDiscoveryResponse>, Refusal> {
        check_type(&request.type_url)?;
        let subscribe = parse_names(request.resource_names_subscribe)?;
        let unsubscribe = parse_names(request.resource_names_unsubscribe)?;
        let mut news = Vec::new();
        if let Some(sent) = self.sent.as_ref().filter(|sent| sent.nonce == request.response_nonce) {
            let version = sent.version.clone();
            news.push(match request.error_detail {
                Some(error) => News::Rejected { version, words: words(&error.message) },
                None => News::Acknowledged { version },
            });
        }
        let is_first = self.client.is_none();
        if is_first {
            let initial = request.initial_resource_versions;
            if initial.len() > MAX_NAMES {
                return Err(Refusal::TooManyNames(initial.len()));
            }
            let client = Client::of(request.node.as_ref(), &self.config);
            self.begin(client, &subscribe, initial.into_iter().collect());
        } else if subscribe.is_empty() && unsubscribe.is_empty() {
            return Ok(Heard { response: None, news });
        } else {
            self.versions.retain(|name, _| !subscribe.contains(name));
        }
        self.subscribe(subscribe, &unsubscribe)?;
        news.extend(self.asked());
        let response = self.answer(now)?;
        if is_first && response.is_none() && self.state.is_some() {
            // It has all of it: as good as taken.
            news.push(News::Acknowledged { version: self.version_of_all() });
        }
        Ok(Heard { response, news })
    }

    fn learn(&mut self, state: WorkloadState, now: Timestamp) -> Result<Option<DeltaDiscoveryResponse>, Refusal> {
        self.state = Some(state);
        self.answer(now)
    }

    fn asked(&self) -> Option<News> {
        let node = self.client.as_ref()?.node.clone();
        let names = if self.everything { Vec::new() } else { self.names.iter().cloned().collect() };
        Some(News::Asked { node, names })
    }

    fn version(response: &DeltaDiscoveryResponse) -> &str {
        &response.system_version_info
    }
}

#[cfg(test)]
mod tests;
