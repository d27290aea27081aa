use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};

use nix::sys::signal::Signal;
use spiffe::time::{Fake, System};
use tempfile::TempDir;

use super::*;
use crate::deliver::test_material::{NOW, material};

mod haproxy;
mod kong;

async fn done(kind: ActionKind, dir: &Path) -> Result<(), String> {
    let material = material();
    let context = Context { name: "nginx", dir, material: &material, clock: &System };
    let action = Action { kind, timeout: Duration::from_secs(20) };
    act(&action, context).await.map_err(|error| error.to_string())
}

fn command(argv: &[&str]) -> ActionKind {
    ActionKind::Command { argv: argv.iter().map(ToString::to_string).collect() }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

#[tokio::test]
async fn a_signal_reaches_the_process_of_the_first_line() {
    let place = TempDir::new().unwrap();
    let pid_file = place.path().join("postmaster.pid");
    let signal = || ActionKind::Signal { pid_file: pid_file.clone(), signal: Signal::SIGHUP };
    let error = done(signal(), place.path()).await.unwrap_err();
    assert!(error.contains("postmaster.pid: No such file"), "{error}");
    let mut child = sleeper();
    fs::write(&pid_file, format!("{}\n/var/lib/postgresql\n1700000000\n", child.id())).unwrap();
    done(signal(), place.path()).await.unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGHUP as i32));
    let error = done(signal(), place.path()).await.unwrap_err();
    assert!(error.contains("is not running: start the program"), "{error}");
    for wrong in ["", "\n7", "0", "1", "-5", "nginx", "99999999999"] {
        fs::write(&pid_file, wrong).unwrap();
        let error = done(signal(), place.path()).await.unwrap_err();
        assert!(error.contains("has no process in its first line"), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn a_pid_file_of_another_user_reaches_only_his_own() {
    let place = TempDir::new().unwrap();
    let pid_file = place.path().join("his.pid");
    let mut child = sleeper();
    fs::write(&pid_file, child.id().to_string()).unwrap();
    let signal = || ActionKind::Signal { pid_file: pid_file.clone(), signal: Signal::SIGTERM };
    fs::set_permissions(&pid_file, fs::Permissions::from_mode(0o666)).unwrap();
    let error = done(signal(), place.path()).await.unwrap_err();
    assert!(error.contains("anybody could have any process signalled"), "{error}");
    fs::set_permissions(&pid_file, fs::Permissions::from_mode(0o644)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&pid_file, Some(4711), None).unwrap();
        let error = done(signal(), place.path()).await.unwrap_err();
        assert!(error.contains("belongs to uid 4711") && error.contains("to uid 0"), "{error}");
    }
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn whoever_owns_the_folder_of_a_pid_file_reaches_no_process_of_root() {
    let place = TempDir::new().unwrap();
    let (his, pid_file, elsewhere) =
        (place.path().join("his"), place.path().join("his/app.pid"), place.path().join("sshd.pid"));
    fs::create_dir(&his).unwrap();
    let mut child = sleeper();
    fs::write(&elsewhere, child.id().to_string()).unwrap();
    let signal = || ActionKind::Signal { pid_file: pid_file.clone(), signal: Signal::SIGTERM };
    // A link to another pid file, a second name of it, and what the kernel says of a process of his.
    for target in [elsewhere.clone(), "/proc/self/comm".into()] {
        std::os::unix::fs::symlink(target, &pid_file).unwrap();
        let error = done(signal(), place.path()).await.unwrap_err();
        assert!(error.contains("name the pid file itself"), "{error}");
        fs::remove_file(&pid_file).unwrap();
    }
    fs::hard_link(&elsewhere, &pid_file).unwrap();
    assert!(done(signal(), place.path()).await.unwrap_err().contains("name the pid file itself"));
    fs::remove_file(&pid_file).unwrap();
    let comm = ActionKind::Signal { pid_file: "/proc/self/comm".into(), signal: Signal::SIGTERM };
    assert!(done(comm, place.path()).await.is_err());
    // The file of root, moved there.
    fs::rename(&elsewhere, &pid_file).unwrap();
    for mode in [0o775, 0o1777] {
        fs::set_permissions(&his, fs::Permissions::from_mode(mode)).unwrap();
        let error = done(signal(), place.path()).await.unwrap_err();
        assert!(error.contains(&format!("mode {mode:04o}")) && error.contains("chmod go-w"), "{error}");
    }
    fs::set_permissions(&his, fs::Permissions::from_mode(0o755)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&his, Some(4711), None).unwrap();
        let error = done(signal(), place.path()).await.unwrap_err();
        assert!(error.contains("his belongs to uid 4711") && error.contains("to uid 0"), "{error}");
        std::os::unix::fs::chown(&his, Some(0), None).unwrap();
    }
    assert!(child.try_wait().unwrap().is_none());
    done(signal(), place.path()).await.unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_pid_file_holds_up_nothing() {
    let place = TempDir::new().unwrap();
    let pid_file = place.path().join("app.pid");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pid_file, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let error = done(ActionKind::Signal { pid_file, signal: Signal::SIGHUP }, place.path()).await.unwrap_err();
    assert!(error.contains("name the pid file itself"), "{error}");
}

#[tokio::test]
async fn a_command_knows_the_delivery_and_nothing_of_ours() {
    let place = TempDir::new().unwrap();
    let out = place.path().join("out");
    let script = format!("env | sort > {}", out.display());
    done(command(&["/bin/sh", "-c", &script]), place.path()).await.unwrap();
    let text = fs::read_to_string(out).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let known =
        ["CHANCERY_DELIVERY", "CHANCERY_DELIVERY_DIR", "CHANCERY_SPIFFE_ID", "PATH", "PWD", "SHLVL", "_", "OLDPWD"];
    assert!(names.iter().all(|name| known.contains(name)), "{text}");
    assert!(
        text.contains("CHANCERY_DELIVERY=nginx\n")
            && text.contains("CHANCERY_SPIFFE_ID=spiffe://example.org/shop/web\n")
    );
}

#[tokio::test]
async fn a_command_that_fails_says_why_in_its_own_words() {
    let place = TempDir::new().unwrap();
    let error = done(command(&["/bin/sh", "-c", "echo out; echo 'no such\nhost' >&2; exit 3"]), place.path()).await;
    assert_eq!(error.unwrap_err(), "/bin/sh ended with exit code 3: out  no such host");
    let error = done(command(&["/no/such/program"]), place.path()).await.unwrap_err();
    assert!(error.contains("cannot run /no/such/program: No such file"), "{error}");
    let error = done(command(&["/bin/sh", "-c", "kill -9 $$"]), place.path()).await.unwrap_err();
    assert!(error.contains("ended with signal 9"), "{error}");
    // However much it prints: it is not waited for, and what is kept is bounded.
    done(command(&["/bin/sh", "-c", "head -c 3000000 /dev/zero"]), place.path()).await.unwrap();
    let error = done(command(&["/bin/sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; exit 1"]), place.path()).await;
    assert!(error.unwrap_err().len() < 600);
}

#[tokio::test]
async fn a_command_that_leaves_something_running_is_not_waited_for() {
    let place = TempDir::new().unwrap();
    let pid = place.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}", pid.display());
    done(command(&["/bin/sh", "-c", &script]), place.path()).await.unwrap();
    let left: i32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL).expect("it is left running");
}

#[tokio::test]
async fn what_takes_too_long_is_killed_with_its_children() {
    let place = TempDir::new().unwrap();
    let (pid, clock) = (place.path().join("pid"), Fake::new(NOW));
    let script =
        format!("sleep 600 & echo $! > {}.new; mv {}.new {}; wait", pid.display(), pid.display(), pid.display());
    let action = Action { kind: command(&["/bin/sh", "-c", &script]), timeout: Duration::from_secs(5) };
    let material = material();
    let context = Context { name: "nginx", dir: place.path(), material: &material, clock: &clock };
    let turning = async {
        while !pid.exists() {
            System.sleep(Duration::from_millis(5)).await;
        }
        clock.advance(Duration::from_secs(5));
    };
    let (done, ()) = tokio::join!(act(&action, context), turning);
    assert_eq!(done.unwrap_err().to_string(), "it took longer than 5s, and was given up");
    let child = fs::read_to_string(pid).unwrap().trim().to_owned();
    // Killed, it may stay a zombie of whoever has inherited it.
    let state = || {
        fs::read_to_string(format!("/proc/{child}/stat"))
            .map_or('X', |stat| stat.split(") ").nth(1).unwrap().chars().next().unwrap())
    };
    while !['X', 'Z'].contains(&state()) {
        System.sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_has_ended_well_has_not_taken_too_long() {
    let place = TempDir::new().unwrap();
    let (pid, clock) = (place.path().join("pid"), Fake::new(NOW));
    // It ends in the last second of its time, and leaves something running that holds its output open.
    let script = format!("sleep 600 & echo $! $$ > {}", pid.display());
    let action = Action { kind: command(&["/bin/sh", "-c", &script]), timeout: Duration::from_secs(1) };
    let material = material();
    let context = Context { name: "nginx", dir: place.path(), material: &material, clock: &clock };
    let turning = async {
        let numbers =
            || fs::read_to_string(&pid).unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect();
        let is_over = |numbers: Vec<String>| numbers.len() == 2 && !Path::new("/proc").join(&numbers[1]).exists();
        while !is_over(numbers()) {
            System.sleep(Duration::from_millis(5)).await;
        }
        clock.advance(Duration::from_secs(1));
    };
    let (done, ()) = tokio::join!(act(&action, context), turning);
    done.unwrap();
    let left: i32 = fs::read_to_string(pid).unwrap().split(' ').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL).expect("it is left running");
}

#[tokio::test]
async fn systemd_is_asked_to_reload_the_unit() {
    let place = TempDir::new().unwrap();
    let (systemctl, out) = (place.path().join("systemctl"), place.path().join("out"));
    fs::write(&systemctl, format!("#!/bin/sh\necho \"$@\" > {}\n[ \"$3\" = nginx.service ]\n", out.display())).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let reload = |unit: &str| ActionKind::Systemd { unit: unit.into(), systemctl: systemctl.clone() };
    done(reload("nginx.service"), place.path()).await.unwrap();
    assert_eq!(fs::read_to_string(&out).unwrap(), "reload -- nginx.service\n");
    assert!(done(reload("other.service"), place.path()).await.unwrap_err().contains("exit code 1"));
}

#[tokio::test]
async fn a_touched_file_keeps_its_content_and_a_missing_one_is_not_made() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("dynamic.yml");
    let touch = || ActionKind::Touch { path: path.clone() };
    assert!(done(touch(), place.path()).await.unwrap_err().contains("cannot touch"));
    assert!(!path.exists());
    fs::write(&path, "tls: {}").unwrap();
    let old = fs::File::open(&path).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    done(touch(), place.path()).await.unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > std::time::UNIX_EPOCH);
    assert_eq!(fs::read_to_string(&path).unwrap(), "tls: {}");
}
