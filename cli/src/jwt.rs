//! `chancery jwt`: JWT-SVIDs made by an operator, for what has no agent.

use std::time::Duration;

use clap::Subcommand;
use spiffe::id::SpiffeId;
use spiffe::jwt_svid::JwtSvid;
use spiffe::proto::v1;

use crate::args::Globals;
use crate::documents::MintedJwt;
use crate::exit::{Failure, Outcome};
use crate::moments::Moment;
use crate::{connect, moments, refusal};

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Have a JWT-SVID signed. Whoever has it can use it: keep it short-lived, and out of logs.
    #[command(after_help = "\
Examples:
  chancery jwt mint --spiffe-id spiffe://example.org/backup --audience reports --ttl 5m
  chancery jwt mint --spiffe-id spiffe://example.org/backup --audience reports -o json")]
    Mint(Mint),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Mint {
    /// The identity.
    #[arg(long, value_name = "ID")]
    spiffe_id: SpiffeId,
    /// Whom it is for; may be repeated, though a token for one is best.
    #[arg(long = "audience", value_name = "AUDIENCE", required = true, value_parser = parse_audience)]
    audience: Vec<String>,
    /// How long it lives; as the server's config says where it is not given.
    #[arg(long, value_name = "DURATION", value_parser = moments::parse_some_time)]
    ttl: Option<Duration>,
}

/// One value of an audience from the command line.
pub(crate) fn parse_audience(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty: name whom the token is for, for example https://api.example.org".into());
    }
    Ok(text.to_owned())
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> Outcome {
        let Self::Mint(mint) = self;
        let request = v1::MintJwtSvidRequest {
            spiffe_id: mint.spiffe_id.to_string(),
            audience: mint.audience,
            ttl: mint.ttl.map_or(0, |ttl| ttl.as_secs().max(1)),
        };
        let mut admin = connect::admin(globals).await?;
        let token = admin.mint_jwt_svid(request).await.map_err(|status| refusal::failure(&status))?.into_inner().token;
        let failed = |why: &dyn std::fmt::Display| Failure::Refused(format!("no JWT-SVID could be made: {why}"));
        let svid = JwtSvid::parse(&token).map_err(|error| failed(&error))?;
        if *svid.id() != mint.spiffe_id {
            return Err(failed(&format!("the server signed {} instead", svid.id())));
        }
        let document = MintedJwt {
            spiffe_id: svid.id().to_string(),
            audience: svid.audience().to_vec(),
            expires_at: Moment(svid.expires_at().unix()),
            token: token.clone(),
        };
        // The token alone: it goes into a variable or a header.
        globals.output.show(&document, || token)
    }
}
