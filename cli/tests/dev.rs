//! `chancery dev` as a user has it: the real binary, asked by the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const CHANCERY: &str = env!("CARGO_BIN_EXE_chancery");

/// A running `chancery dev`; killed hard when dropped.
struct Dev {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    folder: PathBuf,
}

impl Dev {
    /// Starts and returns when it has said that it runs.
    fn start(folder: &Path, entries: &Path) -> Self {
        let mut process = Command::new(CHANCERY)
            .args(["dev", "--ttl", "10s", "--ca-ttl", "2m", "--data-dir"])
            .arg(folder)
            .arg("--entries")
            .arg(entries)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("Rotations")), "dev has ended before it ran");
        Self { process, lines, folder: folder.to_owned() }
    }

    fn command(&self, line: &str) -> Output {
        let socket = format!("unix://{}", self.folder.join("workload.sock").display());
        Command::new(CHANCERY)
            .args(line.split(' '))
            .current_dir(self.folder.parent().unwrap())
            .env("CHANCERY_ADMIN_SOCKET", self.folder.join("admin.sock"))
            .env("SPIFFE_ENDPOINT_SOCKET", socket)
            .output()
            .unwrap()
    }

    /// What a command printed; it has to end well.
    fn says(&self, line: &str) -> String {
        let output = self.command(line);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_laptop_has_identities_that_rotate_and_survive_a_crash() {
    let home = tempfile::tempdir().unwrap();
    let (folder, entries) = (home.path().join("dev"), home.path().join("entries.yaml"));
    // This binary itself has an identity of its own, which comes before the one of its user.
    let path = std::fs::canonicalize(CHANCERY).unwrap();
    let text = format!(
        "- {{spiffe_id: 'spiffe://dev.local/chancery-itself', selectors: ['unix:path:{}'], admin: true}}",
        path.display()
    );
    std::fs::write(&entries, text).unwrap();

    let mut dev = Dev::start(&folder, &entries);
    let fetched = dev.says("fetch x509 --write me");
    assert!(fetched.starts_with("spiffe id  spiffe://dev.local/chancery-itself\n"), "{fetched}");
    assert!(fetched.contains("/default\n"), "{fetched}");
    let mode = std::fs::metadata(home.path().join("me/key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(home.path().join("me/svid.2.pem").exists());

    // The same folder is enough to administer the server from afar.
    let token = dev.says("token create -o json");
    let token: serde_json::Value = serde_json::from_str(&token).unwrap();
    let command: Vec<&str> = token["command"].as_str().unwrap().split(' ').collect();
    assert_eq!(command[..4], ["chancery", "agent", "run", "--server"]);
    assert_eq!(dev.says(&format!("--server {} --svid me entry count", command[4])), dev.says("entry count"));

    let again = dev.command("dev --data-dir dev");
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("another `chancery dev` runs in "));

    // Two renewals of its own, seen by the one who runs it.
    let renewed = |line: &String| line.contains("renewed spiffe://dev.local/chancery-itself");
    assert_eq!(dev.lines.by_ref().map(Result::unwrap).filter(renewed).take(2).count(), 2);

    // Killed hard, and started again from the same state.
    let bundle = dev.says("bundle show --format pem");
    drop(dev);
    let dev = Dev::start(&folder, &entries);
    assert_eq!(dev.says("bundle show --format pem"), bundle);
    assert!(dev.says("fetch x509").starts_with("spiffe id  spiffe://dev.local/chancery-itself\n"));
    assert_eq!(dev.says("entry count --spiffe-id spiffe://dev.local/chancery-itself"), "1\n");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "another process works in real time")]
fn identities_are_delivered_to_files_once_and_again() {
    let home = tempfile::tempdir().unwrap();
    let (folder, entries, files) =
        (home.path().join("dev"), home.path().join("entries.yaml"), home.path().join("files"));
    std::fs::write(&entries, "[]").unwrap();
    let dev = Dev::start(&folder, &entries);
    let config = format!(
        "[[deliver]]\nname = 'web'\ndir = '{}'\n[[deliver.file]]\nkind = 'combined'\nname = '{{{{spiffe_id_path}}}}.pem'\n",
        files.display()
    );
    std::fs::write(home.path().join("deliver.toml"), &config).unwrap();
    std::fs::write(home.path().join("wrong.toml"), config.replace("'combined'", "'combine'")).unwrap();
    assert!(dev.says("deliver validate --config deliver.toml").contains("1 file to "));
    let wrong = dev.command("deliver validate --config wrong.toml");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("unknown variant `combine`"));

    dev.says("deliver --config deliver.toml --once");
    let delivered = || {
        let mut names = std::fs::read_dir(&files).unwrap().map(|file| file.unwrap().path());
        std::fs::read_to_string(names.find(|path| path.extension().is_some_and(|end| end == "pem")).unwrap()).unwrap()
    };
    let first = delivered();
    assert!(first.starts_with("-----BEGIN CERTIFICATE") && first.contains("-----BEGIN PRIVATE KEY"));

    // As long as it runs, renewals follow; told to stop, it leaves the files.
    let mut running = Command::new(CHANCERY);
    running.args(["deliver", "--config", "deliver.toml"]).current_dir(home.path()).stderr(Stdio::null());
    running.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", folder.join("workload.sock").display()));
    let mut running = running.spawn().unwrap();
    for _ in 0..2 {
        let before = delivered();
        while delivered() == before {
            assert!(running.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    assert!(Command::new("kill").arg(running.id().to_string()).status().unwrap().success());
    assert!(running.wait().unwrap().success());
    assert!(delivered().starts_with("-----BEGIN CERTIFICATE"));
}
