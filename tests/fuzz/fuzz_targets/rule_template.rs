//! Templates of rules, and what pods say of themselves put into them: whatever is rendered is an ID of the template's own
//! trust domain with the template's own number of segments. The first line is the template, the others are values.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use spiffe::rule::{DnsTemplate, Facts, Template};

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let template = lines.next().unwrap_or_default();
    let [namespace, account, label] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let labels = BTreeMap::from([("a".to_owned(), label.to_owned())]);
    let facts = Facts {
        cluster: "c",
        namespace,
        namespace_labels: &labels,
        service_account: account,
        pod_name: "p",
        pod_uid: "u",
        pod_labels: &labels,
        node_name: "n",
    };
    if let Ok(template) = Template::parse(template)
        && let Ok(id) = template.render(&facts)
    {
        assert!(id.is_member_of(template.trust_domain()) && !id.is_reserved());
        let slashes = |text: &str| text.matches('/').count();
        let of_keys: usize = template.variables().map(|variable| slashes(&variable.to_string())).sum();
        assert_eq!(slashes(id.as_str()), slashes(template.as_str()) - of_keys);
    }
    if let Ok(template) = DnsTemplate::parse(template)
        && let Ok(name) = template.render(&facts)
    {
        let dots = |text: &str| text.matches('.').count();
        let of_keys: usize = template.variables().map(|variable| dots(&variable.to_string())).sum();
        assert_eq!(dots(name.as_str()), dots(template.as_str()) - of_keys);
    }
});
