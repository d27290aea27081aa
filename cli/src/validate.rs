//! `chancery validate`: has the agent of this machine judge a token, by the bundles that this process gets.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Args, Subcommand};
use prost_types::value::Kind;
use serde_json::Value;

use crate::args::Globals;
use crate::documents::ValidToken;
use crate::exit::{Failure, Outcome};
use crate::fetch::in_time;
use crate::files;
use crate::output::Sheet;
use crate::workload::{self, SOCKET_VARIABLE, Workload};

/// What can be validated.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Validate a JWT-SVID: its signature, its time, and that it is for this audience.
    #[command(after_help = "\
Example:
  chancery fetch jwt --audience me --raw | chancery validate jwt --audience me -")]
    Jwt(Jwt),
}

#[derive(Debug, Args)]
pub(crate) struct Jwt {
    /// The audience that the token has to be for.
    #[arg(long, value_name = "AUDIENCE")]
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
            "-" => String::from_utf8_lossy(&files::read(Path::new("-"))?).trim().to_owned(),
            token => token.to_owned(),
        };
        let mut workload = Workload::connect(jwt.workload_socket.as_deref()).await?;
        let validated = in_time(async {
            workload.validate(jwt.audience, token).await.map_err(|status| match status.code() {
                tonic::Code::InvalidArgument => Failure::Refused(status.message().to_owned()),
                _ => workload::failure(&status),
            })
        });
        let answer = validated.await?;
        let claims = answer.claims.unwrap_or_default().fields.into_iter().map(|(name, value)| (name, json(value)));
        let document = ValidToken { spiffe_id: answer.spiffe_id, claims: claims.collect::<BTreeMap<_, _>>() };
        globals.output.show(&document, || {
            let sheet = Sheet::default().line("spiffe id", &document.spiffe_id);
            let line = |sheet: Sheet, (name, value): (&String, &Value)| sheet.line(name, value.to_string());
            document.claims.iter().fold(sheet, line).text()
        })
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
