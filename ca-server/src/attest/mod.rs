//! Node attestation: how a stranger proves which node it is. One file per kind of proof.
//!
//! - An attestor decides by what it is given: evidence, CSR, time, a nonce. It writes nothing: what has to be committed
//!   (the node's record, the end of a token) is said in [`Attested`], and the Node door does it in one commit.
//! - A proof is bound to the CSR that came with it, and a challenge is answered once: the answer is a value that is moved.
//! - Sizes and kinds of keys are checked before anything that costs.

pub mod join_token;
pub mod k8s_psat;
pub mod x509pop;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spiffe::id::SpiffeId;
use spiffe::selector::Selectors;
use spiffe::time::Timestamp;

use crate::config::{self, ConfigError};

/// What a stranger brings, and what the attestor needs besides.
pub struct Attempt<'a> {
    /// In the attestor's own form.
    pub evidence: &'a [u8],
    /// The CSR of the agent's new key, DER, possession already proved.
    pub csr_der: &'a [u8],
    /// The present moment.
    pub now: Timestamp,
    /// Fresh random bytes, used at most once: the challenge, or the name of the node.
    pub nonce: [u8; 32],
    /// Looks a join token up by the SHA-256 of its text, lower-case hexadecimal.
    pub token: &'a (dyn Fn(&str) -> Option<Token> + Send + Sync),
}

/// What is known of a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// From when on it is worth nothing.
    pub expires_at: Timestamp,
    /// A node alias for whoever attests with it.
    pub alias: Option<SpiffeId>,
}

/// What an attestor wants next.
pub enum Step {
    /// It is convinced.
    Done(Attested),
    /// It asks something back.
    Challenge(Challenge),
}

/// A question to the stranger.
pub struct Challenge {
    /// What is sent, in the attestor's own form.
    pub bytes: Vec<u8>,
    /// What judges the answer; once.
    pub answer: Box<Judge>,
}

/// What judges the answer to a [`Challenge`].
pub type Judge = dyn FnOnce(&[u8]) -> Result<Step, AttestError> + Send;

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(attested) => f.debug_tuple("Done").field(attested).finish(),
            Self::Challenge(challenge) => f.debug_tuple("Challenge").field(&challenge.bytes).finish(),
        }
    }
}

/// Which node it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The agent's path behind `/chancery/agent/<attestor>/`.
    pub node: String,
    /// What was found to be true of the node. `agent_id` is added by the door.
    pub selectors: Selectors,
    /// SHA-256 of the join token that ends with this attestation: deleted in the commit that records the node, or
    /// nothing is done.
    pub token: Option<String>,
    /// A node alias that the agent gets.
    pub alias: Option<SpiffeId>,
    /// Whether a node that is already recorded may attest again.
    pub may_reattest: bool,
}

/// Why a node is not attested.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// Not a kind that this server takes.
    #[error("attestor {kind:?} is not enabled here: {enabled}")]
    Kind {
        /// What was asked for.
        kind: String,
        /// What there is.
        enabled: String,
    },
    /// The join token is no good.
    #[error(transparent)]
    JoinToken(#[from] join_token::TokenError),
    /// The certificate or its proof is no good.
    #[error(transparent)]
    X509Pop(#[from] x509pop::X509PopError),
    /// The service-account token is no good, or nobody can say so now.
    #[error(transparent)]
    K8sPsat(#[from] k8s_psat::K8sPsatError),
}

/// One kind of proof.
#[async_trait]
pub trait NodeAttestor: Send + Sync + fmt::Debug {
    /// Its name, as the agent asks for it and as it stands in agents' IDs.
    fn kind(&self) -> &'static str;

    /// Looks at what the stranger brings.
    async fn start(&self, attempt: Attempt<'_>) -> Result<Step, AttestError>;
}

/// The kinds that are enabled.
#[derive(Clone, Debug)]
pub struct Attestors(Arc<[Arc<dyn NodeAttestor>]>);

impl Attestors {
    /// Those that `config` enables and that need nothing but it; reads the files that it names. k8s_psat needs clusters:
    /// see [`Attestors::and`].
    pub fn from_config(config: &config::Attest) -> Result<Self, ConfigError> {
        let mut all: Vec<Arc<dyn NodeAttestor>> = Vec::new();
        if config.join_token.enabled {
            all.push(Arc::new(join_token::JoinTokenAttestor));
        }
        if let Some(x509pop) = &config.x509pop {
            all.push(Arc::new(x509pop::X509PopAttestor::from_config(x509pop)?));
        }
        Ok(Self(all.into()))
    }

    /// These, and `another`.
    #[must_use]
    pub fn and(self, another: Arc<dyn NodeAttestor>) -> Self {
        Self(self.0.iter().cloned().chain([another]).collect())
    }

    /// The attestor of this kind.
    pub fn find(&self, kind: &str) -> Result<&Arc<dyn NodeAttestor>, AttestError> {
        self.0.iter().find(|attestor| attestor.kind() == kind).ok_or_else(|| {
            let names: Vec<_> = self.0.iter().map(|attestor| attestor.kind()).collect();
            let enabled = match names.as_slice() {
                [] => "this server attests no new nodes".to_owned(),
                names => format!("use {}", names.join(" or ")),
            };
            AttestError::Kind { kind: kind.chars().take(64).collect(), enabled }
        })
    }
}

/// A length of time in words, in its largest unit: `3 minutes`.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let (length, unit) = units.into_iter().find(|(length, _)| seconds >= *length).unwrap_or((1, "second"));
    let count = seconds / length;
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attestor_that_is_not_enabled_names_those_that_are() {
        let none = config::JoinToken { enabled: false, max_ttl: Duration::from_secs(60) };
        let nobody = Attestors::from_config(&config::Attest { join_token: none, ..Default::default() }).unwrap();
        assert_eq!(
            nobody.find("join_token").unwrap_err().to_string(),
            "attestor \"join_token\" is not enabled here: this server attests no new nodes"
        );
        let default = Attestors::from_config(&config::Attest::default()).unwrap();
        assert_eq!(default.find("join_token").unwrap().kind(), "join_token");
        assert_eq!(
            default.find("x509pop").unwrap_err().to_string(),
            "attestor \"x509pop\" is not enabled here: use join_token"
        );
    }

    #[test]
    fn lengths_of_time_in_words() {
        let words = [0, 1, 59, 60, 7199, 7200, 200_000].map(|seconds| in_words(Duration::from_secs(seconds)));
        assert_eq!(words, ["0 seconds", "1 second", "59 seconds", "1 minute", "1 hour", "2 hours", "2 days"]);
    }
}
