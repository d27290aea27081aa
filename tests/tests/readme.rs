//! The shell session in the README works as it is printed there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use tests::binary::{Session, Step, free_port};

#[test]
fn the_session_in_the_readme() {
    // The ports of the paper may be taken on this machine; all else is run as it stands.
    let (agents, health) = (format!(":{}", free_port()), format!(":{}", free_port()));
    let readme = include_str!("../../README.md").replace(":8443", &agents).replace(":8444", &health);
    let steps = Step::all(&readme);
    assert!(steps.len() >= 8, "the README has a session: {steps:?}");
    // Short: a socket's path has 107 bytes at most.
    let folder = tempfile::Builder::new().prefix("chy").tempdir().unwrap();
    let listen = format!("127.0.0.1{health}");
    let mut session = Session::start(folder.path(), &[("CHANCERY_SERVER__HEALTH_LISTEN", &listen)]);
    for step in steps {
        let output = session.run(&step.command);
        assert!(
            step.matches(&output),
            "$ {}\n-- the README says:\n{}\n-- it was:\n{output}",
            step.command,
            step.expected.join("\n")
        );
    }
}
