//! Kong's declarative config with an identity in it: what the operator has written, and our entities put to it.

use serde_norway::{Mapping, Value};
use zeroize::Zeroizing;

use crate::config::deliver::kong::KongEntities;
use crate::deliver::kong::KongIdentity;

/// Of a config that does not say its own.
const FORMAT_VERSION: &str = "3.0";

/// Puts `identity` into `base`, YAML or JSON. An error says what is wrong with `base`.
pub(super) fn render(
    base: &[u8],
    entities: &KongEntities,
    identity: &KongIdentity,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut config: Value = serde_norway::from_slice(base).map_err(|error| format!("it is no YAML: {error}"))?;
    if config.is_null() {
        config = Mapping::new().into();
    }
    let config = config.as_mapping_mut().ok_or("it is no mapping at its top")?;
    config.entry("_format_version".into()).or_insert_with(|| FORMAT_VERSION.into());
    let tags = || Value::from(identity.tags.to_vec());
    let mut certificate = Mapping::new();
    certificate.insert("id".into(), identity.certificate_id.as_str().into());
    certificate.insert("cert".into(), identity.chain.as_str().into());
    certificate.insert("key".into(), identity.key().into());
    certificate.insert("tags".into(), tags());
    if !entities.snis.is_empty() {
        let sni = |name: &String| Value::from(Mapping::from_iter([(Value::from("name"), Value::from(name.as_str()))]));
        certificate.insert("snis".into(), entities.snis.iter().map(sni).collect::<Vec<_>>().into());
    }
    put(config, "certificates", certificate)?;
    for (id, pem) in &identity.roots {
        let mut root = Mapping::new();
        root.insert("id".into(), id.as_str().into());
        root.insert("cert".into(), pem.as_str().into());
        root.insert("tags".into(), tags());
        put(config, "ca_certificates", root)?;
    }
    let roots: Value = identity.roots.iter().map(|(id, _)| Value::from(id.as_str())).collect::<Vec<_>>().into();
    for name in &entities.services {
        let services = config.get_mut("services").and_then(Value::as_sequence_mut);
        let is_it = |service: &&mut Value| {
            ["name", "id"].into_iter().any(|key| service.get(key).and_then(Value::as_str) == Some(name))
        };
        let service = services.and_then(|services| services.iter_mut().find(is_it)).and_then(Value::as_mapping_mut);
        let service = service.ok_or_else(|| format!("it has no service {name:?}, which services names"))?;
        service.insert("ca_certificates".into(), roots.clone());
    }
    let text = serde_norway::to_string(config).map_err(|error| format!("it cannot be written again: {error}"))?;
    Ok(text.into_bytes().into())
}

/// Adds an entity to a list, in the place of the one with its ID.
fn put(config: &mut Mapping, list: &str, entity: Mapping) -> Result<(), String> {
    let entities = config.entry(list.into()).or_insert_with(|| Value::Sequence(Vec::new()));
    if entities.is_null() {
        *entities = Value::Sequence(Vec::new());
    }
    let entities = entities.as_sequence_mut().ok_or_else(|| format!("{list} in it is no list"))?;
    entities.retain(|other| other.get("id") != entity.get("id"));
    entities.push(entity.into());
    Ok(())
}
