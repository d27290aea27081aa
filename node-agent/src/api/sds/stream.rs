//! A stream of SDS as state of the world: requests and states go in, responses come out. Pure.
//!
//! - *first*: the first request of a stream is answered, and any other without a nonce, whatever version it names: a proxy
//!   that comes back may have an old one.
//! - *acknowledgement*: a request with the nonce of the last response and the same names is not answered.
//! - *rejection*: the same with an error; what was rejected is not sent again, the next change is.
//! - *stale*: a request with the nonce of an earlier response is passed over: the proxy has yet to see a later one.
//! - *names*: another list of names is answered at once.
//! - *change*: a state is answered where it changes something that is asked for, and only there.
//! - *version*: what is asked for and its content make the version: the same on every stream, and after every restart.
//! - *nonce*: no two responses of a stream bear the same.
//! - *refusal*: another type, too many names, and names that the workload may not have (any more) end the stream.
//! - *patience*: before there is a state nothing is answered; then the last request is.

use std::collections::BTreeSet;
use std::sync::Arc;

use spiffe::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use spiffe::time::Timestamp;

use super::client::Client;
use super::dialogue::{Dialogue, Heard, News, check_type};
use super::names::Wanted;
use super::secrets::{self, Form, Secret};
use super::{Refusal, SECRET_TYPE};
use crate::cache::WorkloadState;
use crate::config::sds::Sds;
use crate::status::words;

/// See the head of this file.
#[derive(Debug)]
pub struct Stream {
    config: Arc<Sds>,
    state: Option<WorkloadState>,
    asked: Option<Asked>,
    /// What there was last of what is asked for, by name.
    given: BTreeSet<String>,
    /// Of the last response.
    sent: Option<Sent>,
    nonces: u64,
}

#[derive(Debug)]
struct Asked {
    /// As the first request said it.
    client: Client,
    wanted: Wanted,
}

#[derive(Debug)]
struct Sent {
    version: String,
    nonce: String,
}

impl Stream {
    /// A stream on which nothing has been said.
    pub fn new(config: Arc<Sds>) -> Self {
        Self { config, state: None, asked: None, given: BTreeSet::new(), sent: None, nonces: 0 }
    }

    /// The response with what is there now; `None`: it is what was sent last, and nobody has asked again.
    fn answer(&mut self, anew: bool, now: Timestamp) -> Result<Option<DiscoveryResponse>, Refusal> {
        let (Some(state), Some(asked)) = (&self.state, &self.asked) else { return Ok(None) };
        let secrets = secrets::select(
            state,
            &asked.wanted,
            Form { config: &self.config, validation: asked.client.validation, given: &self.given },
            now,
        )?;
        self.given = secrets.iter().map(|secret| secret.name.clone()).collect();
        let versions: Vec<String> = secrets.iter().map(Secret::version).collect();
        let version = secrets::version_of(
            secrets.iter().map(|secret| secret.name.as_str()).zip(versions.iter().map(String::as_str)),
        );
        if !anew && self.sent.as_ref().is_some_and(|sent| sent.version == version) {
            return Ok(None);
        }
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let resources = secrets.iter().map(Secret::packed).collect();
        self.sent = Some(Sent { version: version.clone(), nonce: nonce.clone() });
        Ok(Some(DiscoveryResponse { version_info: version, resources, type_url: SECRET_TYPE.into(), nonce }))
    }
}

impl Dialogue for Stream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn hear(&mut self, request: DiscoveryRequest, now: Timestamp) -> Result<Heard<DiscoveryResponse>, Refusal> {
        let DiscoveryRequest { version_info, node, resource_names, type_url, response_nonce, error_detail } = request;
        check_type(&type_url)?;
        let wanted = Wanted::parse(resource_names)?;
        let Some(asked) = &mut self.asked else {
            let client = Client::of(node.as_ref(), &self.config);
            self.asked = Some(Asked { client, wanted });
            return Ok(Heard { response: self.answer(true, now)?, news: self.asked().into_iter().collect() });
        };
        let mut news = Vec::new();
        let sent = self.sent.as_ref().filter(|sent| sent.nonce == response_nonce);
        match (sent, error_detail) {
            (None, _) if !response_nonce.is_empty() => return Ok(Heard { response: None, news }),
            (Some(sent), Some(error)) => {
                news.push(News::Rejected { version: sent.version.clone(), words: words(&error.message) });
            }
            (Some(sent), None) if sent.version == version_info => {
                news.push(News::Acknowledged { version: version_info });
            }
            _ => {}
        }
        let anew = response_nonce.is_empty() || asked.wanted != wanted;
        if asked.wanted != wanted {
            asked.wanted = wanted;
            news.extend(self.asked());
        }
        Ok(Heard { response: if anew { self.answer(true, now)? } else { None }, news })
    }

    fn learn(&mut self, state: WorkloadState, now: Timestamp) -> Result<Option<DiscoveryResponse>, Refusal> {
        self.state = Some(state);
        self.answer(false, now)
    }

    fn asked(&self) -> Option<News> {
        let Asked { client, wanted } = self.asked.as_ref()?;
        Some(News::Asked { node: client.node.clone(), names: wanted.names().cloned().collect() })
    }

    fn version(response: &DiscoveryResponse) -> &str {
        &response.version_info
    }
}

#[cfg(test)]
mod tests;
