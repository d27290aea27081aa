//! `chancery validate`: has the agent of this machine judge a token, by the bundles that this process gets.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Args, Subcommand};
use prost_types::value::Kind;
use serde_json::Value;
use spiffe::id::TrustDomain;
use spiffe::jwt_svid::JwtSvid;
use spiffe::time::Timestamp;
use tonic::Code;

use crate::args::Globals;
use crate::documents::ValidToken;
use crate::exit::{Failure, Outcome};
use crate::fetch::in_time;
use crate::jwt::parse_audience;
use crate::output::{Sheet, plain};
use crate::workload::{self, SOCKET_VARIABLE, Workload};
use crate::{files, moments};

/// The longest path that is looked at to see whether it is there, in bytes: a token is longer.
const MAX_FILE_NAME: usize = 255;

/// What can be validated.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Validate a JWT-SVID: its signature, its time, and that it is for this audience.
    #[command(after_help = "\
Examples:
  chancery validate jwt --audience https://api.example.org - < token
  chancery fetch jwt --audience me --raw | chancery validate jwt --audience me -")]
    Jwt(Jwt),
}

#[derive(Debug, Args)]
pub(crate) struct Jwt {
    /// The audience that the token has to be for.
    #[arg(long, value_name = "AUDIENCE", value_parser = parse_audience)]
    audience: String,
    /// The token; - reads it from standard input, where no other process of this machine can see it.
    token: String,
    /// The socket of the Workload API.
    #[arg(long, env = SOCKET_VARIABLE, value_name = "ADDRESS")]
    workload_socket: Option<String>,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let Self::Jwt(jwt) = self;
        let token = match jwt.token.as_str() {
            "-" => bare(&String::from_utf8_lossy(&files::read(Path::new("-"))?))
                .map_err(|why| Failure::Refused(format!("standard input has no token: {why}")))?,
            token => bare(token).map_err(|why| Failure::Usage(format!("that is no token: {why}")))?,
        };
        let mut workload = Workload::connect(jwt.workload_socket.as_deref()).await?;
        let validated = in_time(async {
            match workload.validate(jwt.audience, token.clone()).await {
                Ok(answer) => Ok(answer),
                Err(status) if status.code() == Code::InvalidArgument => {
                    let hint = federates_not(&mut workload, &token).await.unwrap_or_default();
                    Err(Failure::Refused(format!("{}{hint}", plain(status.message()))))
                }
                Err(status) => Err(workload::failure(&status)),
            }
        });
        let answer = validated.await?;
        let claims = answer.claims.unwrap_or_default().fields.into_iter().map(|(name, value)| (name, json(value)));
        let document = ValidToken { spiffe_id: answer.spiffe_id, claims: claims.collect::<BTreeMap<_, _>>() };
        globals.output.show(&document, || sheet(&document, moments::now()))
    }
}

/// A token without what often clings to one; or what was given in its place, and what to do.
fn bare(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty; `chancery fetch jwt --audience AUDIENCE --raw` prints one".into());
    }
    if text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        return Err("it begins with \"Bearer\", the word of the HTTP header: give what stands behind that".into());
    }
    // No token has a slash in it; a file may be called anything.
    if text.contains('/') || (text.len() < MAX_FILE_NAME && Path::new(text).exists()) {
        let path = plain(text);
        return Err(format!(
            "{path} looks like the path of a file: feed it with `chancery validate jwt ... - < {path}`"
        ));
    }
    Ok(text.to_owned())
}

/// What to do where a token is of a trust domain whose keys this process does not get.
async fn federates_not(workload: &mut Workload, token: &str) -> Option<String> {
    let of = JwtSvid::parse(token).ok()?.id().trust_domain();
    let known = workload.jwt_bundles().await.ok()?.message().await.ok()??.bundles;
    let is_known = known.keys().any(|id| TrustDomain::parse(id).is_ok_and(|known| known == of));
    (!is_known).then(|| {
        format!(
            "\nto let this process validate tokens of {of}: `chancery federation create {of} ...` or `chancery bundle set {of} \
             ...` brings the keys, and then `chancery entry update ENTRY --federates-with {of}` gives them to it, where ENTRY \
             is the ID of its entry (`chancery entry list`)"
        )
    })
}

fn sheet(token: &ValidToken, now: Timestamp) -> String {
    let line = |sheet: Sheet, (name, value): (&String, &Value)| sheet.line(name, claim(name, value, now));
    token.claims.iter().fold(Sheet::default().line("spiffe id", &token.spiffe_id), line).text()
}

/// A claim as people read it: moments as elsewhere, texts without quotes.
fn claim(name: &str, value: &Value, now: Timestamp) -> String {
    match (name, value) {
        ("exp" | "iat" | "nbf", Value::Number(seconds)) => match seconds.as_u64() {
            Some(seconds) => {
                let at = Timestamp::from_unix(seconds);
                format!("{} ({at})", moments::relative(at, now))
            }
            None => value.to_string(),
        },
        (_, Value::String(text)) => text.clone(),
        ("aud", Value::Array(values)) => values.iter().map(|value| claim("", value, now)).collect::<Vec<_>>().join(" "),
        _ => value.to_string(),
    }
}

fn json(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        // Whole numbers, as moments are, without a point.
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9e15 => Value::from(number as i64),
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(json).collect()),
        Some(Kind::StructValue(object)) => {
            Value::Object(object.fields.into_iter().map(|(name, value)| (name, json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_in_place_of_a_token_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "a.b.c").unwrap();
        for (given, word) in [
            ("", "chancery fetch jwt"),
            (" \n", "it is empty"),
            ("Bearer a.b.c", "\"Bearer\""),
            ("bearer a.b.c", "\"Bearer\""),
            (file.to_str().unwrap(), "- < /"),
            ("./none.jwt", "- < ./none.jwt"),
            ("src", "- < src"),
        ] {
            let told = bare(given).unwrap_err();
            assert!(told.contains(word), "{given:?}: {told}");
        }
        assert_eq!(bare(" a.b-_.c\n").as_deref(), Ok("a.b-_.c"));
    }

    #[test]
    fn claims_as_people_read_them() {
        let now = Timestamp::from_unix(1_000_000);
        let claims = serde_json::json!({
            "aud": ["billing", "reports"], "exp": 1_000_240, "iat": 999_940, "sub": "spiffe://example.org/web", "n": 7,
        });
        let claims = claims.as_object().unwrap().clone().into_iter().collect();
        let text = sheet(&ValidToken { spiffe_id: "spiffe://example.org/web".into(), claims }, now);
        assert!(text.contains("aud        billing reports\nexp        in 4m (1970-01-12T13:50:40Z)\n"), "{text}");
        assert!(
            text.contains("iat        60s ago (") && text.ends_with("sub        spiffe://example.org/web\n"),
            "{text}"
        );
        assert!(text.contains("n          7\n"), "{text}");
    }
}
