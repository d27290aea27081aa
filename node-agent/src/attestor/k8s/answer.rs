//! What the API server, or the kubelet, answers, read object by object.
//!
//! - Nothing of it is held whole (`split`), and nothing of it is ever logged: pods hold secrets. Of its refusals, what it
//!   says in so many words.
//! - An object that cannot be read is passed over with a warning; the others do not suffer.

use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::body::Body as _;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::client::in_words;
use super::split::{Malformed, Piece, Splitter};

/// As it is.
pub(super) const WHOLE: &str = "application/json";
/// Of an object, who it is.
pub(super) const WHO: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// The largest refusal that is read, and the most words of it that are told on.
const MOST_REFUSAL: usize = 16 << 10;
const MOST_WORDS: usize = 256;

/// Why there is no answer; what stands before it is who was asked.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It cannot be reached.
    #[error("cannot be asked: {}", in_words(.0))]
    Kube(#[from] kube::Error),
    /// Nothing was asked.
    #[error("cannot be asked: {0}")]
    Request(#[from] http::Error),
    /// It refuses.
    #[error("refuses ({code}): {words:?}")]
    Refused {
        /// How.
        code: StatusCode,
        /// Why.
        words: String,
    },
    /// The connection broke.
    #[error("broke off: {0}")]
    Broken(String),
    /// It answers something else.
    #[error("sends what is no answer to what was asked")]
    Malformed,
    /// There is no end to it.
    #[error("sends more than {0} bytes")]
    TooLarge(u64),
    /// It took too long.
    #[error("does not answer within {} seconds", .0.as_secs())]
    TooLong(Duration),
}

impl From<Malformed> for AnswerError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// An answer that is read as it comes.
pub(super) struct Answer {
    body: Body,
    chunk: Bytes,
    splitter: Splitter,
    most: u64,
    /// How much of that may still come.
    left: u64,
}

impl Answer {
    /// Asks for `path`, and has the answer come apart by `splitter`.
    pub(super) async fn to(client: &Client, path: &str, accept: &str, splitter: Splitter) -> Result<Self, AnswerError> {
        let request = Request::get(path).header(ACCEPT, accept).body(Body::empty())?;
        let response = client.send(request).await?;
        let (code, body) = (response.status(), response.into_body());
        if code.is_success() {
            return Ok(Self { body, chunk: Bytes::new(), splitter, most: u64::MAX, left: u64::MAX });
        }
        let said = Limited::new(body, MOST_REFUSAL).collect().await.map(Collected::to_bytes).unwrap_or_default();
        // A kubelet says it in plain words.
        let plain = || String::from_utf8_lossy(&said).trim().to_owned();
        let words = serde_json::from_slice(&said).map_or_else(|_| plain(), |Refusal { message }| message);
        Err(AnswerError::Refused { code, words: words.chars().take(MOST_WORDS).collect() })
    }

    /// The same answer, of which no more than so many bytes are read.
    pub(super) fn at_most(mut self, most: u64) -> Result<Self, AnswerError> {
        if self.body.size_hint().lower() > most {
            return Err(AnswerError::TooLarge(most));
        }
        (self.most, self.left) = (most, most);
        Ok(self)
    }

    /// The next object; `None`: that was all. Cancel safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, AnswerError> {
        loop {
            let mut bytes = &*self.chunk;
            let piece = self.splitter.next(&mut bytes)?;
            let rest = bytes.len();
            self.chunk = self.chunk.split_off(self.chunk.len() - rest);
            match piece {
                Some(Piece::Object(object)) => match serde_json::from_slice(&object) {
                    Ok(object) => return Ok(Some(object)),
                    // Its own words would quote what it is about.
                    Err(error) => {
                        let (kind, column) = (error.classify(), error.column());
                        warn!(?kind, column, "what is told of an object cannot be understood: it is passed over");
                    }
                },
                Some(Piece::TooLarge) => warn!("an object is larger than any can be: it is passed over"),
                None => match self.body.frame().await {
                    None => return Ok(None),
                    Some(Ok(frame)) => {
                        self.chunk = frame.into_data().unwrap_or_default();
                        let length = u64::try_from(self.chunk.len()).unwrap_or(u64::MAX);
                        self.left = self.left.checked_sub(length).ok_or(AnswerError::TooLarge(self.most))?;
                    }
                    Some(Err(error)) => return Err(AnswerError::Broken(error.to_string())),
                },
            }
        }
    }

    /// What stands around the items of a list that has been read to its end.
    pub(super) fn around<T: DeserializeOwned>(&self) -> Result<T, AnswerError> {
        let around = self.splitter.around().ok_or_else(|| AnswerError::Broken("in the middle of a list".into()))?;
        serde_json::from_slice(around).map_err(|_| AnswerError::Malformed)
    }
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

/// Lets an answer take no longer than `limit`.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, AnswerError>>,
) -> Result<T, AnswerError> {
    #[expect(clippy::disallowed_methods, reason = "a limit on input and output of the network")]
    tokio::time::timeout(limit, answer).await.unwrap_or(Err(AnswerError::TooLong(limit)))
}

/// `text` as a part of a query.
pub(super) fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
