//! What Kong makes of `docs/proxies/kong.md`, run on nginx: there is no Kong that a test could install. What goes over its Admin
//! API is held by the contract tests of `node-agent/src/deliver/action/kong.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::{House, free_port, wait_for};
use tests::proxies::{Checker, Front, Load, Nginx, Recipe, Service, Web, get};

/// The lines of nginx that Kong renders for its proxy out of `kong.conf`.
fn rendered(config: &str) -> String {
    let mut lines = String::new();
    for (key, value) in config.lines().filter_map(|line| line.split_once(" = ")) {
        let directive = match key {
            "client_ssl" => continue,
            "ssl_cert" => "ssl_certificate",
            "ssl_cert_key" => "ssl_certificate_key",
            "client_ssl_cert" => "proxy_ssl_certificate",
            "client_ssl_cert_key" => "proxy_ssl_certificate_key",
            _ => key.strip_prefix("nginx_proxy_").unwrap_or_else(|| panic!("Kong makes no directive of {key}")),
        };
        lines.push_str(&format!("{directive} {value};\n"));
    }
    lines
}

#[test]
fn nginx_with_the_directives_of_kong_loses_no_request() {
    let mut house = House::with_server("");
    let spiffe = house.path("spiffe").display().to_string();
    let delivery = Recipe::read("kong", "agent.toml")
        .with("/etc/kong/spiffe", &spiffe)
        .with("/usr/local/kong/pids/nginx.pid", &house.path("kong.pid").display().to_string());
    // Nobody answers at the Admin API here.
    let (files, actions) = delivery.split("[[deliver.action]]");
    let signal = actions.split_once("[[deliver.action]]").unwrap().1;
    house.write_agent_config(&house.token(), &format!("{}[[deliver.action]]{signal}", files.text()));
    house.start_agent();
    house.entry("web", "deliver:kong", &["--ttl", "3s", "--dns", "web.example.org"]);
    let checker = Checker::start(&house.path("spiffe"), "tls.crt", "tls.key");

    let api = Web::start(&house, ("spiffe://example.org/web", Service::start().port), &["--dns", "api.example.org"]);
    let (tls, directives) = (free_port(), Recipe::read("kong", "kong.conf").with("/etc/kong/spiffe", &spiffe));
    // As in Kong's own template: the host of the service is the name that is verified.
    let location = format!(
        "set $upstream_host api.example.org; proxy_ssl_name $upstream_host; proxy_ssl_server_name on;\n\
         proxy_http_version 1.1; proxy_pass https://127.0.0.1:{};",
        api.port
    );
    let config = Recipe::of(format!(
        "user www-data;\npid /run/nginx.pid;\nevents {{}}\nhttp {{\nserver {{\nlisten 127.0.0.1:{tls} ssl;\n{}\
         location / {{\n{location}\n}}\n}}\n}}\n",
        rendered(directives.text())
    ));
    let _kong = Nginx::start(&house, "kong", config);
    let front = Front::start(&house, "spiffe://example.org/web", tls);
    wait_for(60, || get(front.port, "/").ok().filter(|answer| answer.status == 200)).expect("a first answer");
    let (load, seen) = (Load::start(front.port), checker.versions());
    wait_for(120, || (checker.versions() > seen + 10).then_some(())).expect("rotations");
    load.end();
    checker.end();
}

#[test]
fn each_delivery_of_the_page_is_one() {
    let house = House::empty("");
    for file in ["agent.toml", "dbless.toml"] {
        let path = house.write(file, Recipe::read("kong", file).text()).display().to_string();
        house.run(&["deliver", "validate", "--config", &path]).succeeded().says(&["kong"]);
    }
}
