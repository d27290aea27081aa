//! The agent's SVID, key and bundle on disk: `agent-svid.pem`, `agent-key.pem`, `bundle.json`.
//!
//! - The folder is 0700, each file 0600, written beside its place, synced and renamed. A folder of another user is
//!   refused, and no mode is set through a symbolic link: whoever can put one there would choose whose mode it is.
//! - One agent at a time: a lock on `agent.lock` is held as long as the folder is open, and ends with the process.
//! - Key and SVID are two files: the key file has the new key and the old one until the new SVID is there, so that an
//!   end at any moment leaves a pair that fits.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::bundle::Bundle;
use spiffe::id::TrustDomain;
use spiffe::pem;
use spiffe::x509_svid::X509Svid;
use zeroize::Zeroizing;

use super::{NodeError, NodeIdentity};
use crate::cache::event::Key;

const SVID: &str = "agent-svid.pem";
const KEY: &str = "agent-key.pem";
const BUNDLE: &str = "bundle.json";
const LOCK: &str = "agent.lock";
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// The folder in which the agent keeps what is its own. Clones share the lock on it.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf, #[expect(dead_code, reason = "held for its lock")] Arc<Flock<File>>);

impl Folder {
    /// Opens `path`, creates it where there is none, and closes it to everybody else. An error while another has it
    /// open, in this process or another.
    pub fn open(path: &Path) -> Result<Self, NodeError> {
        let failed = |doing| move |source| NodeError::File { doing, path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create the folder"))?;
        close_to_others(path)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK));
        let lock = Flock::lock(lock.map_err(failed("create the lock in"))?, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => NodeError::InUse(path.to_owned()),
            errno => failed("lock")(errno.into()),
        })?;
        Ok(Self(path.to_owned(), Arc::new(lock)))
    }

    /// The stored SVID and its key, valid or not.
    pub fn identity(&self) -> Result<Option<NodeIdentity>, NodeError> {
        let (Some(chain), Some(keys)) = (self.read(SVID)?, self.read(KEY)?) else { return Ok(None) };
        let wrong = |file: &str, why: String| NodeError::Content {
            path: self.0.join(file),
            why: format!("{why}; remove the file to have this node attested anew"),
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(SVID, error.to_string()))?;
        let svid = X509Svid::parse(chain).map_err(|error| wrong(SVID, error.to_string()))?;
        for key in PrivatePkcs8KeyDer::pem_slice_iter(&keys) {
            let key = key.map_err(|error| wrong(KEY, error.to_string()))?;
            let key = Zeroizing::new(key.secret_pkcs8_der().to_vec());
            if svid.key_fits(&key).is_ok() {
                return Ok(Some(NodeIdentity { svid, key: Key(Arc::new(key)) }));
            }
        }
        Err(wrong(KEY, format!("no key in it fits the certificate in {SVID}")))
    }

    /// Stores `identity` in the place of `old`.
    pub fn store(&self, identity: &NodeIdentity, old: Option<&NodeIdentity>) -> Result<(), NodeError> {
        let key = pem::private_key(&identity.key.0);
        if let Some(old) = old {
            let old = pem::private_key(&old.key.0);
            // Room for both at once: a text that grows leaves pieces of a key behind.
            let mut keys = Zeroizing::new(String::with_capacity(key.len() + old.len()));
            keys.push_str(&key);
            keys.push_str(&old);
            self.write(KEY, keys.as_bytes())?;
        } else {
            // The SVID that may lie there fits no longer: an end between the two writes must not leave a bad pair.
            self.remove(SVID)?;
            self.write(KEY, key.as_bytes())?;
        }
        let chain: String = identity.svid.chain().iter().map(|der| pem::certificate(der)).collect();
        self.write(SVID, chain.as_bytes())?;
        if old.is_some() {
            self.write(KEY, key.as_bytes())?;
        }
        Ok(())
    }

    /// The stored bundle of `trust_domain`.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>, NodeError> {
        let Some(document) = self.read(BUNDLE)? else { return Ok(None) };
        let parsed = Bundle::from_jwks(trust_domain.clone(), &document);
        parsed.map(Some).map_err(|source| NodeError::Bundle { path: self.0.join(BUNDLE), source })
    }

    /// Stores the bundle.
    pub fn store_bundle(&self, bundle: &Bundle) -> Result<(), NodeError> {
        self.write(BUNDLE, bundle.to_jwks().as_bytes())
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, NodeError> {
        read(&self.0.join(name))
    }

    fn remove(&self, name: &str) -> Result<(), NodeError> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NodeError::File { doing: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), NodeError> {
        let (path, beside) = (self.0.join(name), self.0.join(format!(".{name}.new")));
        let written = (|| {
            let _ = fs::remove_file(&beside);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.0)?.sync_all()
        })();
        written.map_err(|source| NodeError::File { doing: "write", path, source })
    }
}

/// Sets the mode of the folder at `path` to 0700; behind a symbolic link it has to be so already.
fn close_to_others(path: &Path) -> Result<(), NodeError> {
    let failed = |doing| move |source| NodeError::File { doing, path: path.to_owned(), source };
    let wrong = |why| NodeError::Content { path: path.to_owned(), why };
    let found = fs::metadata(path).map_err(failed("look at"))?;
    let ours = nix::unistd::geteuid().as_raw();
    if found.uid() != ours && found.uid() != 0 {
        let owner = found.uid();
        return Err(wrong(format!(
            "data_dir belongs to uid {owner}, and this agent runs as uid {ours}: run it as that user, or run chown \
             {ours} on it"
        )));
    }
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY).bits();
    // Without a slash at its end, behind which a link is followed all the same.
    let itself: PathBuf = path.components().collect();
    match OpenOptions::new().read(true).custom_flags(flags).open(itself) {
        Ok(folder) => folder.set_permissions(Permissions::from_mode(0o700)).map_err(failed("set the mode of")),
        // A link: with O_DIRECTORY the kernel says that it is no folder.
        Err(error)
            if [Errno::ELOOP, Errno::ENOTDIR].map(|errno| Some(errno as i32)).contains(&error.raw_os_error()) =>
        {
            if found.mode() & 0o077 == 0 {
                return Ok(());
            }
            Err(wrong("data_dir is a symbolic link to a folder that others can enter: run chmod 0700 on it".into()))
        }
        Err(error) => Err(failed("open the folder")(error)),
    }
}

/// Reads a whole file of a sensible size; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, NodeError> {
    let mut content = Zeroizing::new(Vec::new());
    let result = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content));
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NodeError::File { doing: "read", path: path.to_owned(), source }),
        Ok(_) if content.len() as u64 > MAX_FILE_BYTES => {
            Err(NodeError::Content { path: path.to_owned(), why: "the file is larger than 8 MiB".into() })
        }
        Ok(_) => Ok(Some(content)),
    }
}

#[cfg(test)]
mod tests {
    use spiffe::time::Timestamp;

    use super::*;
    use crate::test_house::House;

    #[test]
    fn what_is_stored_is_read_again_and_closed_to_others() {
        let house = House::new(Timestamp::from_unix(1_800_000_000));
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(&place.path().join("a/b")).unwrap();
        assert!(folder.identity().unwrap().is_none());
        assert!(folder.bundle(&house.trust_domain()).unwrap().is_none());
        let (first, second) = (house.agent("1"), house.agent("1"));
        folder.store(&first, None).unwrap();
        assert_eq!(folder.identity().unwrap().unwrap().svid, first.svid);
        folder.store(&second, Some(&first)).unwrap();
        assert_eq!(folder.identity().unwrap().unwrap().svid, second.svid);
        folder.store_bundle(&house.bundle()).unwrap();
        let bundle = folder.bundle(&house.trust_domain()).unwrap().unwrap();
        assert_eq!(bundle.x509_authorities(), house.bundle().x509_authorities());
        for file in fs::read_dir(place.path().join("a/b")).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(place.path().join("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn no_mode_is_set_through_a_symbolic_link() {
        let place = tempfile::tempdir().unwrap();
        let (folder, link) = (place.path().join("folder"), place.path().join("link"));
        DirBuilder::new().mode(0o755).create(&folder).unwrap();
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let mode = || fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        let refused = Folder::open(&link).unwrap_err().to_string();
        let expected = "data_dir is a symbolic link to a folder that others can enter: run chmod 0700 on it";
        assert_eq!(refused, format!("{}: {expected}", link.display()));
        Folder::open(&link.join("")).unwrap_err();
        assert_eq!(mode(), 0o755);
        // The folder itself is ours to close, and behind the link it then does.
        drop(Folder::open(&folder).unwrap());
        assert_eq!(mode(), 0o700);
        Folder::open(&link).unwrap();
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            // Only root can give a folder away, and any other user is refused by the kernel already.
            assert!(Folder::open(Path::new("/root")).is_err());
            return;
        }
        let place = tempfile::tempdir().unwrap();
        nix::unistd::chown(place.path(), Some(4711.into()), None).unwrap();
        let refused = Folder::open(place.path()).unwrap_err().to_string();
        assert!(refused.contains("data_dir belongs to uid 4711, and this agent runs as uid 0"), "{refused}");
    }

    #[test]
    fn two_agents_do_not_share_a_folder() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let clone = folder.clone();
        drop(folder);
        let error = Folder::open(place.path()).unwrap_err();
        let expected = format!(
            "another agent uses data_dir {}: stop it, or give this one its own data_dir",
            place.path().display()
        );
        assert_eq!(error.to_string(), expected);
        assert!(!error.is_transient());
        drop(clone);
        Folder::open(place.path()).unwrap();
    }

    #[test]
    fn an_end_between_the_two_files_leaves_a_pair_that_fits() {
        let house = House::new(Timestamp::from_unix(1_800_000_000));
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let (first, second) = (house.agent("1"), house.agent("1"));
        folder.store(&first, None).unwrap();
        // As `store` would have left it, had it ended behind the first write.
        let keys = format!("{}{}", *pem::private_key(&second.key.0), *pem::private_key(&first.key.0));
        folder.write(KEY, keys.as_bytes()).unwrap();
        assert_eq!(folder.identity().unwrap().unwrap().svid, first.svid);
        folder.write(KEY, pem::private_key(&second.key.0).as_bytes()).unwrap();
        let error = folder.identity().unwrap_err().to_string();
        assert!(error.contains("fits the certificate") && error.contains("remove the file"), "{error}");
    }
}
