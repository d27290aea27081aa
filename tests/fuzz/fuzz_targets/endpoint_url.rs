//! The URL of a bundle endpoint, and behind a line end where a redirect of it leads: always to https, to nobody's account.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe::federation::{EndpointUrl, MAX_URL_BYTES};

fn judge(url: &EndpointUrl) {
    let text = url.to_string();
    assert!(text.starts_with("https://") && text.is_ascii() && !text.contains(['#', ' ', '\r', '\n', '\\']));
    assert!(!url.authority().contains('@') && url.port() > 0 && url.target().starts_with('/'));
    // A default port that is left out, or a slash that is put in, may make it longer or shorter by a few bytes.
    if text.len() <= MAX_URL_BYTES {
        assert_eq!(EndpointUrl::parse(&text).as_ref(), Ok(url));
    }
}

fuzz_target!(|text: &str| {
    let (url, location) = text.split_once('\n').unwrap_or((text, "/"));
    let Ok(url) = EndpointUrl::parse(url) else { return };
    judge(&url);
    if let Ok(target) = url.redirected(location) {
        judge(&target);
    }
});
