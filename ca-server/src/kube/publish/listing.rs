//! From the events of a watch to what they say of the bundle: a first list is gathered until it is whole. Of each object
//! nothing is kept but its name and a hash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::kube::Resource;
use ::kube::core::PartialObjectMeta;
use ::kube::runtime::watcher::{self, Event};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, future};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};

use super::content;
use super::publication::{Digest, Place, Seen};

/// One watch, and what of its first list has come.
#[derive(Debug)]
pub(super) struct Listing<T> {
    of: T,
    begun: BTreeMap<Arc<str>, Digest>,
}

/// Objects of one kind, as events name them.
pub(super) trait Listed: Send + 'static {
    /// The kind.
    type Object: Resource;
    /// The name by which it is listed, and what it holds; `None`: it does not count.
    fn read(&self, object: &Self::Object) -> Option<(Arc<str>, Digest)>;
    /// All of them.
    fn all(&self, found: BTreeMap<Arc<str>, Digest>) -> Seen;
    /// One is there.
    fn there(&self, name: Arc<str>, digest: Digest) -> Seen;
    /// One is gone.
    fn gone(&self, name: Arc<str>) -> Seen;
}

/// Namespaces; those that are named in the config are always meant.
#[derive(Debug)]
pub(super) struct Namespaces(Vec<Arc<str>>);

/// ConfigMaps of one name, in one namespace or in all.
#[derive(Debug)]
pub(super) struct Maps {
    name: Arc<str>,
    namespace: Option<Arc<str>>,
}

impl Listing<Namespaces> {
    /// Of namespaces, `named` always among them.
    pub(super) fn namespaces(named: Vec<Arc<str>>) -> Self {
        Self { of: Namespaces(named), begun: BTreeMap::new() }
    }
}

impl Listing<Maps> {
    /// Of the ConfigMaps `name` in `namespace`, or in all.
    pub(super) fn maps(name: Arc<str>, namespace: Option<Arc<str>>) -> Self {
        Self { of: Maps { name, namespace }, begun: BTreeMap::new() }
    }
}

impl<T: Listed> Listing<T> {
    fn take(&mut self, event: Event<T::Object>) -> Option<Seen> {
        match event {
            Event::Init => {
                self.begun.clear();
                None
            }
            Event::InitApply(object) => {
                self.begun.extend(self.of.read(&object));
                None
            }
            Event::InitDone => Some(self.of.all(std::mem::take(&mut self.begun))),
            Event::Apply(object) => match self.of.read(&object) {
                Some((name, digest)) => Some(self.of.there(name, digest)),
                None => self.gone(&object),
            },
            Event::Delete(object) => self.gone(&object),
        }
    }

    fn gone(&self, object: &T::Object) -> Option<Seen> {
        let meta = object.meta();
        let name = meta.namespace.as_deref().or(meta.name.as_deref())?;
        Some(self.of.gone(name.into()))
    }
}

/// What `events` say, as `listing` reads them.
pub(super) fn gathered<T: Listed>(
    events: impl Stream<Item = Result<Event<T::Object>, watcher::Error>> + Send + 'static,
    mut listing: Listing<T>,
) -> BoxStream<'static, Result<Seen, watcher::Error>>
where
    T::Object: Send,
{
    events.filter_map(move |event| future::ready(event.map(|event| listing.take(event)).transpose())).boxed()
}

impl Listed for Namespaces {
    type Object = PartialObjectMeta<Namespace>;

    fn read(&self, object: &Self::Object) -> Option<(Arc<str>, Digest)> {
        // Nothing can be written into one that is being deleted.
        let is_going = object.metadata.deletion_timestamp.is_some();
        object.metadata.name.as_deref().filter(|_| !is_going).map(|name| (name.into(), Digest::default()))
    }

    fn all(&self, found: BTreeMap<Arc<str>, Digest>) -> Seen {
        Seen::Namespaces(found.into_keys().chain(self.0.iter().cloned()).collect::<BTreeSet<_>>())
    }

    fn there(&self, name: Arc<str>, _: Digest) -> Seen {
        Seen::Namespace(name)
    }

    fn gone(&self, name: Arc<str>) -> Seen {
        if self.0.contains(&name) { Seen::Namespace(name) } else { Seen::NamespaceGone(name) }
    }
}

impl Listed for Maps {
    type Object = ConfigMap;

    fn read(&self, object: &ConfigMap) -> Option<(Arc<str>, Digest)> {
        let namespace = object.metadata.namespace.as_deref()?;
        let nothing = BTreeMap::new();
        Some((namespace.into(), content::held(&self.name, object.data.as_ref().unwrap_or(&nothing))))
    }

    fn all(&self, mut found: BTreeMap<Arc<str>, Digest>) -> Seen {
        let name = Arc::clone(&self.name);
        match &self.namespace {
            None => Seen::Maps { name, held: found },
            Some(namespace) => Seen::Map(Place { namespace: Arc::clone(namespace), name }, found.remove(namespace)),
        }
    }

    fn there(&self, namespace: Arc<str>, digest: Digest) -> Seen {
        Seen::Map(Place { namespace, name: Arc::clone(&self.name) }, Some(digest))
    }

    fn gone(&self, namespace: Arc<str>) -> Seen {
        Seen::Map(Place { namespace, name: Arc::clone(&self.name) }, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(namespace: &str, pem: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some(namespace.into());
        map.metadata.name = Some("roots".into());
        map.data = Some([("root-cert.pem".to_owned(), pem.to_owned())].into());
        map
    }

    #[test]
    fn a_first_list_is_told_when_it_is_whole() {
        let mut listing = Listing::maps("roots".into(), None);
        assert_eq!(listing.take(Event::Init), None);
        assert_eq!(listing.take(Event::InitApply(map("a", "x"))), None);
        let Some(Seen::Maps { held, .. }) = listing.take(Event::InitDone) else { panic!("a list") };
        assert_eq!(held.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
        let place = Place { namespace: "b".into(), name: "roots".into() };
        assert!(matches!(listing.take(Event::Apply(map("b", "x"))), Some(Seen::Map(of, Some(_))) if of == place));
        assert_eq!(listing.take(Event::Delete(map("b", "x"))), Some(Seen::Map(place, None)));
        // Of one namespace, an empty list says that it is not there, and nothing of other namespaces.
        let mut one = Listing::maps("roots".into(), Some("a".into()));
        let place = Place { namespace: "a".into(), name: "roots".into() };
        assert_eq!((one.take(Event::Init), one.take(Event::InitDone)), (None, Some(Seen::Map(place, None))));
    }

    #[test]
    fn a_namespace_that_is_being_deleted_is_gone_and_a_named_one_is_not() {
        let namespace = |name: &str, is_going: bool| {
            let mut object = PartialObjectMeta::<Namespace>::default();
            object.metadata.name = Some(name.into());
            object.metadata.deletion_timestamp =
                is_going.then(|| serde_json::from_value("2026-11-21T00:00:00Z".into()).unwrap());
            object
        };
        let mut listing = Listing::namespaces(vec!["own".into()]);
        assert_eq!(listing.take(Event::Apply(namespace("a", false))), Some(Seen::Namespace("a".into())));
        assert_eq!(listing.take(Event::Apply(namespace("a", true))), Some(Seen::NamespaceGone("a".into())));
        assert_eq!(listing.take(Event::Delete(namespace("own", false))), Some(Seen::Namespace("own".into())));
        assert_eq!(listing.take(Event::InitApply(namespace("b", false))), None);
        let all = ["b", "own"].map(Arc::from).into();
        assert_eq!(listing.take(Event::InitDone), Some(Seen::Namespaces(all)));
    }
}
