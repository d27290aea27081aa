//! JWT-SVIDs and JWT bundles. Each token is judged twice: by the crate with the bundles that it was given, and by the
//! Workload API's ValidateJWTSVID.

use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use spiffe::{JwtBundleSet, JwtSource, JwtSvid, SpiffeId, WorkloadApiClient};

use crate::Outcome;

pub async fn watch_bundles(updates: usize) -> Outcome<()> {
    let client = WorkloadApiClient::connect_env().await?;
    let mut bundles = client.stream_jwt_bundles().await?.take(updates);
    let mut seen = 0;
    while let Some(bundles) = bundles.next().await {
        println!("{}", json!({ "client": "spiffe-rust", "bundles": counts(&bundles?) }));
        seen += 1;
    }
    if seen < updates {
        return Err(format!("the stream ended after {seen} updates").into());
    }
    Ok(())
}

pub async fn fetch(audience: &[String], id: Option<&str>) -> Outcome<()> {
    let first = audience.first().ok_or("--audience is missing")?;
    let client = WorkloadApiClient::connect_env().await?;
    let id = id.map(SpiffeId::try_from).transpose()?;
    let svids = client.fetch_all_jwt_svids(audience, id.as_ref()).await?;
    let source = JwtSource::new().await?;
    let bundles = source.bundle_set()?;
    let mut tokens = Vec::new();
    for svid in svids {
        let own = JwtSvid::parse_and_validate(svid.token(), &*bundles, &[first])?;
        let told = client.validate_jwt_token(first, svid.token()).await?;
        if own.spiffe_id() != svid.spiffe_id() || told.spiffe_id() != svid.spiffe_id() {
            return Err(format!("{} is validated as another", svid.spiffe_id()).into());
        }
        tokens.push(json!({
            "spiffe_id": svid.spiffe_id().to_string(),
            "token": svid.token(),
            "audience": svid.audience(),
            "expires_at": svid.expiry().unix_timestamp(),
            "hint": svid.hint().unwrap_or_default(),
        }));
    }
    println!("{}", json!({ "client": "spiffe-rust", "tokens": tokens, "bundles": counts(&bundles) }));
    source.shutdown().await;
    Ok(())
}

fn counts(bundles: &JwtBundleSet) -> Map<String, Value> {
    bundles.iter().map(|(domain, bundle)| (domain.to_string(), json!(bundle.jwt_authorities().count()))).collect()
}
