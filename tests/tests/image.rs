//! The container image as `deploy/image` writes it, of the binary that all tests judge: one layer that is what it says it is,
//! under 25 MB, with a program that needs nothing beside it and runs from the image's root alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say what is wrong by panicking")]

use std::fs;
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde_json::Value;
use tests::binary::{Command, Output, chancery};
use tests::chart::{Chart, deploy};

/// What the files of the image may take, unpacked.
const MOST: u64 = 25_000_000;
/// A program header that names a loader (`PT_INTERP` of the ELF specification).
const LOADER: u32 = 3;

#[test]
fn the_image_is_small_static_and_runs() {
    assert!(
        !names_a_loader(&fs::read(chancery()).unwrap()),
        "{} needs a loader: ./check release builds a static one",
        chancery().display()
    );
    let folder = tempfile::tempdir().unwrap();
    let (archive, again) = (folder.path().join("a.tar"), folder.path().join("b.tar"));
    for file in [&archive, &again] {
        write(&["oci", file.to_str().unwrap()]).succeeded();
    }
    assert!(fs::read(&archive).unwrap() == fs::read(&again).unwrap(), "the same files make the same archive");

    let layout = unpacked(&archive, folder.path(), "layout");
    let document = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |of: &Value| {
        let hash = of["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let path = layout.join("blobs/sha256").join(&hash);
        let bytes = fs::read(&path).unwrap();
        assert_eq!((hex(&bytes), bytes.len() as u64), (hash, of["size"].as_u64().unwrap()));
        path
    };
    assert_eq!(document(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let manifest = document(&blob(&document(&layout.join("index.json"))["manifests"][0]));
    let config = document(&blob(&manifest["config"]));
    assert_eq!((&config["config"]["User"], &config["os"]), (&"65532:65532".into(), &"linux".into()));
    let entrypoint = config["config"]["Entrypoint"][0].as_str().unwrap();

    let root = unpacked(&blob(&manifest["layers"][0]), folder.path(), "root");
    let size = size_of(&root);
    assert!(size < MOST, "the image has {size} bytes");
    assert!(root.join(&entrypoint[1..]).is_file());
    let roots = fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(roots.contains("BEGIN CERTIFICATE"), "the web's CAs are there");

    inside(&root, &["--version"]).succeeded().says(&["chancery "]);
    // A config as the chart makes one; without the cluster, whose files only a pod has.
    let charts = Chart::all();
    let server = charts[0].object("ConfigMap", "chancery-server")["data"]["server.toml"].as_str().unwrap();
    let config = server.split("# No kubeconfig").next().unwrap();
    fs::write(root.join("server.toml"), config).unwrap();
    inside(&root, &["server", "validate", "--config", "/server.toml"]).succeeded();
    // Names are looked up without anything that would have to be loaded: from /etc/hosts here.
    fs::write(root.join("etc/hosts"), "127.0.0.1 here.test\n").unwrap();
    let nobody = inside(&root, &["healthcheck", "--health", "here.test:1", "--timeout", "200ms"]);
    nobody.failed(3, &["no server answers at here.test:1", "refused"]);
}

/// `deploy/image` with these words, of the binary that is there.
fn write(words: &[&str]) -> Output {
    let command = Command::new(deploy("image")).args(words);
    command.env("CHANCERY_STATIC_BIN", chancery()).run()
}

/// `chancery` with nothing around it but the image.
fn inside(root: &Path, words: &[&str]) -> Output {
    let root = root.display().to_string();
    let nobody = nix::unistd::geteuid().is_root();
    let command = if nobody {
        Command::new("chroot").args(["--userspec=65532:65532", &root])
    } else {
        Command::new("unshare").args(["--map-root-user", "chroot", &root])
    };
    command.args(["/usr/bin/chancery"]).args(words).run()
}

fn unpacked(archive: &Path, folder: &Path, name: &str) -> std::path::PathBuf {
    let to = folder.join(name);
    fs::create_dir(&to).unwrap();
    let words = ["-xf", archive.to_str().unwrap(), "-C", to.to_str().unwrap()];
    Command::new("tar").args(words).run().succeeded();
    to
}

fn size_of(folder: &Path) -> u64 {
    let each = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    each.map(|entry| if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}

fn names_a_loader(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        elf[at..at + bytes].iter().rev().fold(0_usize, |number, byte| (number << 8) | usize::from(*byte))
    };
    assert_eq!(&elf[..5], b"\x7fELF\x02", "an ELF file of 64 bits");
    let (start, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).any(|index| number(start + index * size, 4) == LOADER as usize)
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
