use super::action::ActionKind;
use super::*;

const LEAST: &str =
    "[[deliver]]\nname = 'nginx'\ndir = '/etc/nginx/spiffe'\n[[deliver.file]]\nkind = 'chain'\nname = 'tls.crt'\n";

fn parse(text: &str) -> Result<Vec<Delivery>, String> {
    Standalone::parse(text, []).map(|config| config.deliveries).map_err(|error| error.to_string())
}

#[test]
fn a_short_delivery_has_defaults() {
    let text = format!(
        "{LEAST}[[deliver.file]]\nkind = 'key'\nname = 'tls.key'\n[[deliver.file]]\nkind = 'key'\nname = 'b.key'\ngroup = \
         'www'\n[[deliver.action]]\nkind = 'signal'\npid_file = '/run/nginx.pid'\n"
    );
    let [delivery] = &parse(&text).unwrap()[..] else { panic!() };
    assert_eq!(delivery.selectors.to_string(), "deliver:nginx");
    let modes: Vec<u32> = delivery.files.iter().map(|file| file.mode).collect();
    assert_eq!(modes, [0o644, 0o600, 0o640]);
    assert_eq!(delivery.actions[0].timeout, USUAL_TIMEOUT);
    assert!(matches!(&delivery.actions[0].kind, ActionKind::Signal { signal, .. } if signal.as_str() == "SIGHUP"));
}

#[test]
fn what_is_said_for_the_delivery_counts_for_each_file() {
    let text =
        LEAST.replace("[[deliver.file]]", "owner = 'postgres'\n[[deliver.file]]\nowner = 'root'\n[[deliver.file]]");
    assert!(parse(&text).is_err(), "a file without kind and name is none");
    let text = format!(
        "{}[[deliver.file]]\nkind = 'key'\nname = 'k'\nowner = 'root'\nmode = '0400'\n",
        LEAST.replace("[[deliver.file]]", "owner = 'postgres'\ngroup = 'ssl'\n[[deliver.file]]")
    );
    let delivery = parse(&text).unwrap().remove(0);
    let owners: Vec<_> = delivery.files.iter().map(|file| (file.owner.clone().unwrap(), file.mode)).collect();
    assert_eq!(owners, [("postgres".to_owned(), 0o644), ("root".to_owned(), 0o400)]);
    assert_eq!(delivery.files[1].group.as_deref(), Some("ssl"));
}

#[test]
fn the_wishes_for_tokens_are_collected() {
    let text = format!(
        "{LEAST}[[deliver.file]]\nkind = 'jwt'\nname = 'a'\naudience = 'x'\n[[deliver.file]]\nkind = 'jwt'\nname = 'b'\n\
         audience = ['y', 'x']\n[[deliver.file]]\nkind = 'jwks'\nname = 'c'\n"
    );
    let delivery = parse(&text).unwrap().remove(0);
    let audiences: Vec<_> = delivery.audiences().iter().map(|audience| audience.values().join("+")).collect();
    assert_eq!(audiences, ["x", "x+y"]);
    assert!(delivery.has_jwks());
}

#[test]
fn each_wrong_value_says_what_to_do() {
    let file = |text: &str| format!("{LEAST}[[deliver.file]]\n{text}\n");
    let action = |text: &str| format!("{LEAST}[[deliver.action]]\n{text}\n");
    let cases = [
        ("".into(), "add [[deliver]]"),
        (LEAST.replace("'nginx'", "'a b'"), "a-z A-Z 0-9"),
        (format!("{LEAST}{LEAST}"), "stands there twice"),
        (format!("{LEAST}{}", LEAST.replace("'nginx'", "'other'")), "have the same dir /etc/nginx/spiffe"),
        (LEAST.replace("/etc/", "etc/"), "dir etc/nginx/spiffe must be absolute"),
        (LEAST.replace("/etc/", "/etc/../"), "has .. in it"),
        (LEAST.replace("[[deliver.file]]\nkind = 'chain'\nname = 'tls.crt'\n", ""), "it has no files"),
        (LEAST.replace("tls.crt", "../tls.crt"), "no slash"),
        (LEAST.replace("'chain'", "'chains'"), "unknown variant `chains`"),
        (file("kind = 'key'\nname = 'k'\nmode = '0644'"), "holds a secret, and mode 0644"),
        (file("kind = 'chain'\nname = 'k'\nmode = '0664'"), "nobody but its owner may write"),
        (file("kind = 'chain'\nname = 'k'\nmode = '0999'"), "in octal"),
        (file("kind = 'chain'\nname = 'k'\nowners = 'x'"), "unknown field `owners`"),
        (file("kind = 'bundle'\nname = 'k'\nfederated = true"), "put {{trust_domain}} into its name"),
        (file("kind = 'jwt'\nname = 'k'\naudience = []"), "say for whom the token is"),
        (action("kind = 'signal'\npid_file = 'a.pid'"), "pid_file a.pid must be absolute"),
        (action("kind = 'signal'\npid_file = '/a.pid'\nsignal = 'KILL'"), "none of the signals that can be sent: HUP"),
        (action("kind = 'command'\nargv = []"), "argv is empty"),
        (action("kind = 'command'\nargv = ['nginx']"), "there is no shell"),
        (action("kind = 'command'\nargv = ['/a']\ntimeout = '1h'"), "10m at most"),
        (action("kind = 'systemd'\nunit = '--now'"), "no name of a unit"),
        (file("kind = 'pkcs12'\nname = 'k'\npassword_file = 'p'"), "password_file p must be absolute"),
        (file("kind = 'kong_file'\nname = 'k'\nbase = '/b'\nservices = ['a/b']"), "neither a name nor an ID"),
        (action("kind = 'haproxy'\nsocket = '/s'"), "neither certificate nor ca_file"),
        (action("kind = 'haproxy'\nsocket = '/s'\ncertificate = 'a b'"), "HAProxy takes for something else"),
        (action("kind = 'kong'\nadmin_url = 'http://kong:8001'"), "would send a private key unprotected"),
        (action("kind = 'kong_file'\nadmin_url = 'http://[::1]:8001'\nfile = '../a'"), "no name of a file"),
        (action("kind = 'kong'\nadmin_url = 'http://[::1]:8001'\nservice = 'a'"), "unknown field `service`"),
        (action("kind = 'touch'\npath = 'a'"), "path a must be absolute"),
        (action("kind = 'touch'\npath = '/a'\nmode = '1'"), "unknown field `mode`"),
    ];
    for (text, words) in cases {
        let error = parse(&text).expect_err(&text);
        assert!(error.contains(words), "{error}\n(wanted: {words})");
    }
}

#[test]
fn no_process_can_have_the_selector_of_a_delivery() {
    // An attestor speaks for its own type alone (`attestor` holds it to that), and none has this one.
    use crate::attestor::WorkloadAttestor;
    use crate::attestor::systemd::Systemd;
    use crate::attestor::unix::Unix;
    let attestors: [Box<dyn WorkloadAttestor>; 2] =
        [Box::new(Unix::new(0, std::sync::Arc::new(spiffe::time::System))), Box::new(Systemd)];
    assert!(attestors.iter().all(|attestor| attestor.kind() != SELECTOR_KIND));
}

#[test]
fn the_sample_shows_a_delivery_with_the_defaults() {
    let sample = include_str!("../../../../deploy/agent.toml");
    let shown = &sample[sample.find("# [[deliver]]").unwrap()..];
    let text: String = shown.lines().map(|line| line.trim_start_matches("# ").to_owned() + "\n").collect();
    let delivery = parse(&text).unwrap().remove(0);
    let without =
        text.replace("mode = \"0640\"\n", "").replace("signal = \"HUP\"\n", "").replace("timeout = \"10s\"\n", "");
    assert!(without.len() < text.len());
    assert_eq!(delivery, parse(&without).unwrap().remove(0));
}

#[test]
fn the_examples_of_the_page_are_configs() {
    let page = include_str!("../../../../docs/deliver.md");
    let mut examples = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).peekable();
    assert!(examples.peek().is_some());
    // Indented, as it stands in a list.
    examples.for_each(|example| assert_eq!(parse(example).unwrap()[0].name, "nginx"));
}
