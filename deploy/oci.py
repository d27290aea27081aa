"""Writes a folder as a container image: oci.py FOLDER FILE.tar

One layer, owned by root, with no time in it. The archive is an OCI image layout (opencontainers/image-spec v1) and holds
`manifest.json` too, by which Docker loads images.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import platform
import re
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
NAME = f"chancery:{VERSION}"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def member(name, data=None, mode=0o644):
    info = tarfile.TarInfo(name)
    info.mode = mode
    if data is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size = len(data)
    return info, io.BytesIO(data or b"")


def layer(folder):
    """The files of `folder` in the order of their names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            data = None if path.is_dir() else path.read_bytes()
            tar.addfile(*member(name, data, 0o755 if os.access(path, os.X_OK) else 0o644))
    return out.getvalue()


def main(folder, target):
    blobs = {}

    def blob(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    def document(value, kind):
        return blob(json.dumps(value, sort_keys=True).encode(), kind)

    plain = layer(pathlib.Path(folder))
    packed = blob(gzip.compress(plain, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    machine = platform.machine()
    config = {
        "architecture": MACHINES.get(machine, machine),
        "os": "linux",
        "config": {
            "User": "65532:65532",
            "Entrypoint": ["/usr/bin/chancery"],
            "Env": ["PATH=/usr/bin"],
            "Labels": {"org.opencontainers.image.title": "chancery", "org.opencontainers.image.version": VERSION,
                       "org.opencontainers.image.licenses": "Apache-2.0"},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
    }
    config = document(config, "application/vnd.oci.image.config.v1+json")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = document({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [packed]}, kind)
    manifest["annotations"] = {"org.opencontainers.image.ref.name": VERSION, "io.containerd.image.name": f"docker.io/library/{NAME}"}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}
    path = lambda of: "blobs/sha256/" + of["digest"].removeprefix("sha256:")
    docker = [{"Config": path(config), "RepoTags": [NAME], "Layers": [path(packed)]}]
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(*member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'))
        tar.addfile(*member("index.json", json.dumps(index).encode()))
        tar.addfile(*member("manifest.json", json.dumps(docker).encode()))
        for digest, data in sorted(blobs.items()):
            tar.addfile(*member(f"blobs/sha256/{digest}", data))
    print(f"{target}: {NAME}, {len(plain) / 1e6:.1f} MB, {packed['size'] / 1e6:.1f} MB packed")


main(*sys.argv[1:])
