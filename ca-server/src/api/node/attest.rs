//! Attest: a stranger proves which node it is, and gets the agent's first SVID.
//!
//! - How often strangers may try, and how many at once, is limited before anything is looked at.
//! - A stranger gets a place in the audit queue only while half of it is free: the rest is for those that are in.
//! - The CSR's possession is proved first; the attestor binds its own proof to that same CSR.
//! - The node's record, the end of a join token and the alias that came with it are one commit. On a conflict the SVID
//!   is dropped, never sent: of two that use one token at once, one gets in.
//! - A banned node stays banned, whatever it proves.

use std::sync::Arc;
use std::time::Duration;

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::id::SpiffeId;
use spiffe::proto::v1::{self, attest_request, attest_response};
use spiffe::selector::{Selector, Selectors};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::api::Doors;
use crate::api::caller::Caller;
use crate::api::limits::TooMany;
use crate::api::rights::{Admitted, Denied};
use crate::api::status::Refusal;
use crate::attest::{Attempt, Attested, Step, Token};
use crate::audit::{Event, Outcome, Serial as AuditSerial};
use crate::authority::issuer::{Serial, Signed};
use crate::issuance::{self, Request};
use crate::metrics::IssuedFor;
use crate::store::{StoreError, Txn};
use crate::view::record::{Node, entry_to_record};
use crate::view::{View, keys};

/// How long a stranger may take for the whole exchange.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// The largest evidence, in bytes.
const MAX_EVIDENCE: usize = 128 << 10;
/// The most challenges in one exchange.
const MAX_CHALLENGES: usize = 4;

/// One exchange.
pub(super) struct Attesting {
    pub(super) doors: Arc<Doors>,
    pub(super) admitted: Admitted,
    pub(super) to: mpsc::Sender<Result<v1::AttestResponse, Status>>,
}

/// What is known of the exchange when it ends, for the record.
#[derive(Default)]
struct Trace {
    agent: Option<SpiffeId>,
    csr_sha256: Option<[u8; 32]>,
}

impl Attesting {
    /// Runs the exchange to its end, records how it ended, and says so.
    pub(super) async fn run(self, requests: Streaming<v1::AttestRequest>) {
        let _timer = self.doors.metrics.time("Attest");
        let answer = self.decide(requests).await;
        let step = |result| v1::AttestResponse { step: Some(attest_response::Step::Result(result)) };
        // The stranger may be gone already.
        let _ = self.to.send(answer.map(step).map_err(Status::from)).await;
    }

    async fn decide(&self, requests: Streaming<v1::AttestRequest>) -> Result<v1::AttestResult, Refusal> {
        let doors = &self.doors;
        let busy = |what: TooMany| {
            let refusal = Refusal::overloaded(&what.to_string());
            doors.metrics.refused(refusal.reason());
            refusal
        };
        let origin = self.admitted.caller.origin();
        doors.attesting.take(origin.clone(), self.admitted.now).map_err(busy)?;
        // Before anything of the stranger's is read.
        let _turn = doors.open_attestations.take(origin).ok_or_else(|| busy(TooMany::InAll))?;
        let mut record = doors.audit.reserve_spare()?;
        let mut trace = Trace::default();
        #[expect(clippy::disallowed_methods, reason = "a time limit on what a stranger on the network may take")]
        let attested = tokio::time::timeout(TIME_LIMIT, self.exchange(requests, &mut trace)).await;
        let attested =
            attested.unwrap_or_else(|_| Err(Refusal::attestation("attestation took longer than 30 seconds")));
        let outcome = attested.as_ref().map_or_else(Refusal::outcome, |_| Outcome::Issued);
        let mut event = Event::new(self.admitted.now, "Attest", self.admitted.who(), outcome);
        event.address = match &self.admitted.caller {
            Caller::Stranger(address) => Some(*address),
            other => other.holder().map(|holder| holder.address),
        };
        event.subject = trace.agent;
        event.csr_sha256 = trace.csr_sha256;
        event.revision = self.admitted.view.revision();
        if let Ok((signed, _)) = &attested {
            event.serial = Some(AuditSerial::new(signed.serial.bytes()));
            event.not_after = Some(signed.lifetime.not_after);
            doors.metrics.issued(IssuedFor::Agent);
        }
        doors.decided(&mut record, event);
        let (signed, view) = attested?;
        Ok(v1::AttestResult { svid: Some(super::to_wire(&signed)), bundle: Some(view.bundle().into()) })
    }

    async fn exchange(
        &self,
        mut requests: Streaming<v1::AttestRequest>,
        trace: &mut Trace,
    ) -> Result<(Signed, Arc<View>), Refusal> {
        let Some(attest_request::Step::Start(start)) = next(&mut requests).await? else {
            return Err(Refusal::invalid("the first message has to say how the node attests"));
        };
        if start.evidence.len() > MAX_EVIDENCE {
            return Err(Refusal::attestation(format_args!("evidence has over {MAX_EVIDENCE} bytes")));
        }
        trace.csr_sha256 = Some(crypto::sha256(&start.csr));
        let attestor = self.doors.attestors.find(&start.attestor)?;
        let key = ProvenKey::from_csr(&start.csr)?;
        let view = Arc::clone(&self.admitted.view);
        let token = move |hash: &str| {
            let held = view.token(hash)?;
            Some(Token { expires_at: held.expires_at, alias: held.alias.clone() })
        };
        let attempt = Attempt {
            evidence: &start.evidence,
            csr_der: &start.csr,
            now: self.admitted.now,
            nonce: crypto::random()?,
            token: &token,
        };
        let mut step = attestor.start(attempt).await?;
        for _ in 0..=MAX_CHALLENGES {
            match step {
                Step::Done(attested) => {
                    let agent = self.admitted.view.trust_domain().agent_id(attestor.kind(), &attested.node);
                    let agent = agent.map_err(Refusal::attestation)?;
                    trace.agent = Some(agent.clone());
                    return self.admit(attestor.kind(), agent, attested, key).await;
                }
                Step::Challenge(challenge) => {
                    let ask = attest_response::Step::Challenge(challenge.bytes.into());
                    let gone = |_| Refusal::attestation("the agent went away before it answered the challenge");
                    self.to.send(Ok(v1::AttestResponse { step: Some(ask) })).await.map_err(gone)?;
                    let Some(attest_request::Step::ChallengeResponse(answer)) = next(&mut requests).await? else {
                        return Err(Refusal::attestation("the challenge was not answered"));
                    };
                    step = (challenge.answer)(&answer)?;
                }
            }
        }
        Err(Refusal::internal("the attestor does not come to an end"))
    }

    /// Signs and commits; the SVID leaves only when the commit is through.
    async fn admit(
        &self,
        kind: &str,
        agent: SpiffeId,
        attested: Attested,
        key: ProvenKey,
    ) -> Result<(Signed, Arc<View>), Refusal> {
        let doors = &self.doors;
        // Challenges took their time: what is known now counts.
        let (view, now) = (doors.views.load(), doors.clock.now());
        let before = view.node(&agent);
        if before.is_some_and(|node| node.banned) {
            return Err(Denied::Banned(agent.to_string()).into());
        }
        if before.is_some() && !attested.may_reattest {
            return Err(Refusal::attestation(format_args!(
                "agent {agent} is attested already: evict it first with \"chancery agent evict\""
            )));
        }
        let issuer = view.issuer().ok_or_else(Refusal::no_authority)?;
        let serial = Serial::from_random(crypto::random()?);
        let request = Request { key, serial, window: issuer.window(), now };
        let signed = issuer.sign(issuance::for_agent(agent.clone(), request, &doors.profile)?)?;

        let own = Selector::parse(&format!("agent_id:{agent}")).map_err(Refusal::internal)?;
        let selectors = Selectors::new(attested.selectors.iter().cloned().chain([own.clone()]));
        let node = Node {
            id: agent.clone(),
            attestor: kind.to_owned(),
            selectors: selectors.map_err(Refusal::attestation)?,
            serial: signed.serial.bytes().to_vec(),
            previous_serial: Vec::new(),
            expires_at: signed.lifetime.not_after,
            attested_at: now,
            banned: false,
        };
        let node_key = keys::node(&agent).ok_or_else(|| Refusal::internal("an agent without a key in the store"))?;
        let mut txn = match before {
            Some(held) => Txn::new().expect(node_key.clone(), held.revision),
            None => Txn::new().absent(node_key.clone()),
        };
        txn = txn.put(node_key, node.to_record());
        if let Some(hash) = &attested.token {
            let held = view.token(hash).ok_or_else(used)?;
            txn = txn.expect(keys::token(hash), held.revision).delete(keys::token(hash));
        }
        if let Some(alias) = attested.alias {
            let entry = RegistrationEntry {
                id: EntryId::from_random(crypto::random()?),
                spiffe_id: alias,
                parent: view.trust_domain().server_id(),
                selectors: Selectors::new([own]).map_err(Refusal::internal)?,
                x509_ttl: None,
                jwt_ttl: None,
                wit_ttl: None,
                jti: false,
                dns_names: Vec::new(),
                hint: String::new(),
                admin: false,
                federates_with: Vec::new(),
                expires_at: None,
                key_type: None,
                created_at: now,
            };
            txn = txn.put(keys::unique(&entry), entry.id.to_string());
            txn = txn.put(keys::entry(&entry.id), entry_to_record(&entry));
        }
        let committed = doors.commit(txn).await;
        let revision = committed.map_err(|error| match error {
            StoreError::Conflict { .. } if attested.token.is_some() => used(),
            error => error.into(),
        })?;
        Ok((signed, doors.views.reached(revision).await))
    }
}

fn used() -> Refusal {
    Refusal::attestation("join token was used already: create another with \"chancery token create\"")
}

async fn next(requests: &mut Streaming<v1::AttestRequest>) -> Result<Option<attest_request::Step>, Refusal> {
    let message = requests.message().await.map_err(|status| Refusal::attestation(status.message()))?;
    Ok(message.and_then(|message| message.step))
}
