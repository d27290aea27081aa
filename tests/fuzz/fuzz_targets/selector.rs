//! Selectors: what parses prints back the same; a set, one selector in each line, is a subset of itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe::selector::{MAX_SELECTOR_BYTES, Selector, Selectors};

fuzz_target!(|text: &str| {
    if let Ok(selector) = Selector::parse(text) {
        assert_eq!(selector.to_string(), text);
        assert!(text.len() <= MAX_SELECTOR_BYTES && !text.contains(char::is_control));
    }
    if let Ok(selectors) = Selectors::parse(text.lines()) {
        assert!(selectors.is_subset_of(&selectors));
        if let Ok(backwards) = Selectors::parse(text.lines().rev()) {
            assert_eq!(backwards, selectors);
        }
    }
});
