//! What a token says of itself, which nobody has vouched for: it can only cost its bearer a question. Pure.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;
use spiffe::time::Timestamp;

/// How far the API server's clock may be behind ours: a token is not called old before.
const LEEWAY: Duration = Duration::from_secs(60);

/// What of it is looked at.
#[derive(Debug, Deserialize)]
struct Claims {
    exp: u64,
    #[serde(default)]
    aud: Audiences,
}

/// One, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

/// When the token ends; `None`: that cannot be read.
pub(super) fn end(token: &str) -> Option<Timestamp> {
    read(token).map(|claims| Timestamp::from_unix(claims.exp))
}

/// Why no API server need be asked whether the token is good for `audience`: by its own words it is not.
pub(super) fn refusal(token: &str, audience: &str, now: Timestamp) -> Option<String> {
    let Some(Claims { exp, aud }) = read(token) else {
        return Some("it is no projected service-account token: it does not say when it ends".into());
    };
    let end = Timestamp::from_unix(exp);
    if end.plus(LEEWAY) <= now {
        return Some(format!("it has expired: it was good until {end}"));
    }
    let is_for_us = match &aud {
        Audiences::One(one) => one == audience,
        Audiences::Several(several) => several.iter().any(|one| one == audience),
    };
    (!is_for_us).then(|| format!("it is not for audience {audience:?}"))
}

fn read(token: &str) -> Option<Claims> {
    let payload = BASE64.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_795_218_000);

    fn refused(claims: &str) -> Option<String> {
        refusal(&format!("e30.{}.c2ln", BASE64.encode(claims)), "istio-ca", NOW)
    }

    #[test]
    fn only_what_may_be_good_is_asked_about() {
        for good in [
            r#"{"exp":1795218001,"aud":["istio-ca"]}"#,
            r#"{"exp":1795218001,"aud":["other","istio-ca"],"iss":7}"#,
            r#"{"exp":1795218001,"aud":"istio-ca"}"#,
            // By the clock of the API server it may not have ended.
            r#"{"exp":1795217941,"aud":["istio-ca"]}"#,
        ] {
            assert_eq!(refused(good), None, "{good}");
        }
        let why = |claims: &str| refused(claims).unwrap();
        assert!(why(r#"{"exp":1795217940,"aud":["istio-ca"]}"#).contains("has expired"));
        for other in [r#"["istio-ca2"]"#, "[]", r#""""#, r#"["https://kubernetes.default.svc"]"#] {
            assert!(why(&format!(r#"{{"exp":1795218001,"aud":{other}}}"#)).contains("not for audience \"istio-ca\""));
        }
        assert!(why(r#"{"exp":1795218001}"#).contains("not for audience"));
        for none in ["", "{}", "[]", r#"{"exp":"x","aud":"istio-ca"}"#, r#"{"exp":-1,"aud":"istio-ca"}"#] {
            assert!(why(none).contains("no projected service-account token"), "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, claims: String) {
            let _ = refusal(&text, "istio-ca", NOW);
            let _ = refused(&claims);
        }
    }
}
