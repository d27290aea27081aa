//! Two trust domains that fetch each other's bundles.

use super::command::Output;
use super::house::House;
use super::port::free_port;

/// A trust domain that serves its bundle by its own SVID and may fetch from this machine; and where it does.
#[track_caller]
pub fn served(trust_domain: &str) -> (House, String) {
    let port = free_port();
    let web = format!(
        "federation.allow_networks = ['127.0.0.0/8']\nweb.https_spiffe.listen = '127.0.0.1:{port}'\n\
         authority.ca_ttl = '10h'\nsvid.max_ttl = '1h'"
    );
    (House::empty_of(trust_domain, &web).start(""), format!("https://127.0.0.1:{port}/"))
}

/// The bundle of `house`.
#[track_caller]
pub fn bundle(house: &House) -> String {
    house.run(&["bundle", "show", "--format", "spiffe"]).succeeded().stdout
}

/// `here` learns the bundle of `there` from its endpoint.
#[track_caller]
pub fn federate(here: &House, there: &House, url: &str) {
    here.write("their-bundle.json", &bundle(there));
    let (domain, id) = (there.trust_domain(), there.id("chancery/server"));
    let words = ["federation", "create", domain, "--url", url, "--profile", "https_spiffe", "--endpoint-id", &id];
    let first = ["--bundle", "their-bundle.json", "--bundle-format", "spiffe", "--wait"];
    here.run(&[&words[..], &first[..]].concat()).succeeded();
    refresh(here, there).succeeded();
}

/// `here` fetches that bundle again.
pub fn refresh(here: &House, there: &House) -> Output {
    here.run(&["federation", "refresh", there.trust_domain(), "-o", "json"])
}
