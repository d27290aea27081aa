//! The private keys of this server's authorities. They never enter the store, and never leave this room but as
//! something that signs.
//!
//! - A key's name is that of its authority: the first 32 hexadecimal digits of the SHA-256 of its public key.
//! - On disk: one PKCS#8 PEM file for each key, mode 0600, in a folder of mode 0700; written whole or not at all.
//! - A file or folder that others can read is refused: whoever could read it may have read it. Of a key that was made
//!   elsewhere, others are not those to whose group root has given it, when that is ours.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rcgen::PublicKeyData;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use spiffe::crypto;
use spiffe::entry::KeyType;
use spiffe::jose::{SignatureError, Signer};
use zeroize::{Zeroize, Zeroizing};

use super::record::is_id;
use super::rsa_key;

/// Why a key could not be made, read or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The operating system refused.
    #[error("key store {path}: cannot {what}: {why}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        why: String,
    },
    /// Others than the owner may read the file or enter the folder.
    #[error(
        "key store {path}: mode {mode:04o} lets others in: if nobody can have read it, run chmod {wanted:04o} on it, else taint the authority and make another"
    )]
    Exposed {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// Another user could put something else there.
    #[error(
        "{path} belongs to uid {owner}, and this server runs as uid {ours}: run it as that user, or, if he cannot have read or changed anything there, run chown {ours} on it"
    )]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        ours: u32,
    },
    /// The file holds no key, or that of another authority.
    #[error(
        "key store {path}: not the PKCS#8 PEM private key that its name says: restore it from a backup, or remove it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The name is none that a key can have.
    #[error("key store: {0:?} is no name of a key")]
    Name(String),
    /// No key could be made.
    #[error(transparent)]
    Crypto(#[from] crypto::CryptoError),
    /// No RSA key could be made.
    #[error("no RSA key could be generated")]
    Rsa,
}

/// Which key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// Ed25519, which signs no tokens.
    Ed25519,
    /// RSA of 2048 bits, which signs no certificates of ours.
    Rsa2048,
}

impl From<KeyType> for KeySpec {
    fn from(key_type: KeyType) -> Self {
        match key_type {
            KeyType::P256 => Self::P256,
            KeyType::P384 => Self::P384,
            KeyType::Ed25519 => Self::Ed25519,
        }
    }
}

/// A private key that signs. Not to be cloned, printed or written anywhere; the copy of its bytes is wiped on drop.
pub struct SigningKey {
    pair: rcgen::KeyPair,
    id: Arc<str>,
}

impl SigningKey {
    /// A new key. An RSA one takes its time: make it where that holds up nobody.
    pub fn generate(spec: KeySpec) -> Result<Self, KeyError> {
        let key_type = match spec {
            KeySpec::P256 => KeyType::P256,
            KeySpec::P384 => KeyType::P384,
            KeySpec::Ed25519 => KeyType::Ed25519,
            KeySpec::Rsa2048 => {
                let pkcs8 = rsa_key::generate().ok_or(KeyError::Rsa)?;
                return Self::from_pkcs8(&pkcs8).ok_or(KeyError::Rsa);
            }
        };
        Ok(Self::new(crypto::generate_key(key_type)?))
    }

    /// From PKCS#8, DER.
    fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let rsa = || {
            let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
            rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256).ok()
        };
        crypto::load_key(pkcs8).ok().or_else(rsa).map(Self::new)
    }

    fn new(pair: rcgen::KeyPair) -> Self {
        let mut id = crypto::sha256_hex(&pair.subject_public_key_info());
        id.truncate(32);
        Self { pair, id: id.into() }
    }

    /// The name of the key and of its authority.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The public half, a DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// What signs tokens with this key; refused for Ed25519, which no token is signed with.
    pub fn token_signer(&self) -> Result<Signer, SignatureError> {
        Signer::from_pkcs8(self.pair.serialized_der())
    }
}

impl PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.pair.algorithm()
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.pair.sign(message)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.id).finish()
    }
}

impl Drop for SigningKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

/// Where a server keeps the private keys of its own authorities.
#[async_trait]
pub trait KeyStore: Send + Sync + fmt::Debug {
    /// Makes a key and keeps it: when this returns it survives a power cut, where the kind of store can promise that.
    async fn create(&self, spec: KeySpec) -> Result<Arc<SigningKey>, KeyError>;

    /// The key of that name; `None` when there is none.
    async fn load(&self, id: &str) -> Result<Option<Arc<SigningKey>>, KeyError>;

    /// Forgets the key of that name. It is no error when there is none.
    async fn remove(&self, id: &str) -> Result<(), KeyError>;

    /// The names of all keys, sorted.
    async fn list(&self) -> Result<Vec<Arc<str>>, KeyError>;
}

/// Keys that end with the process: for tests, and for servers that make a new authority at each start.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Arc<str>, Arc<SigningKey>>>);

#[async_trait]
impl KeyStore for Memory {
    async fn create(&self, spec: KeySpec) -> Result<Arc<SigningKey>, KeyError> {
        let made = tokio::task::spawn_blocking(move || SigningKey::generate(spec)).await;
        let key = Arc::new(made.unwrap_or(Err(KeyError::Rsa))?);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id().clone(), key.clone());
        Ok(key)
    }

    async fn load(&self, id: &str) -> Result<Option<Arc<SigningKey>>, KeyError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned())
    }

    async fn remove(&self, id: &str) -> Result<(), KeyError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Arc<str>>, KeyError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }
}

/// Keys in files of one folder.
#[derive(Clone, Debug)]
pub struct Disk {
    folder: Arc<Path>,
}

impl Disk {
    /// Opens `folder`, made with mode 0700 when it is not there, and clears away what a crash in the middle of a
    /// write left. Blocks: call it before the loops start.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io(folder, "make the folder"))?;
        private(folder, 0o700)?;
        let disk = Self { folder: folder.into() };
        for entry in std::fs::read_dir(folder).map_err(io(folder, "list the folder"))? {
            let path = entry.map_err(io(folder, "list the folder"))?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                std::fs::remove_file(&path).map_err(io(&path, "remove the unfinished file"))?;
            }
        }
        Ok(disk)
    }

    fn path(&self, id: &str) -> Result<PathBuf, KeyError> {
        if !is_id(id) {
            return Err(KeyError::Name(id.chars().take(64).collect()));
        }
        Ok(self.folder.join(format!("{id}.pem")))
    }

    fn write(&self, key: &SigningKey) -> Result<(), KeyError> {
        let path = self.path(key.id())?;
        let unfinished = path.with_extension("new");
        let pem = Zeroizing::new(key.pair.serialize_pem());
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(io(&unfinished, "make the file"))?;
        let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all());
        let placed = written.and_then(|()| std::fs::rename(&unfinished, &path));
        if let Err(error) = placed {
            // Best effort: what stays is cleared away at the next start.
            let _ = std::fs::remove_file(&unfinished);
            return Err(io(&path, "write the key")(error));
        }
        self.sync()
    }

    fn read(&self, id: &str) -> Result<Option<SigningKey>, KeyError> {
        let path = self.path(id)?;
        let pem = match std::fs::read(&path) {
            Ok(pem) => Zeroizing::new(pem),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(&path, "read the key")(error)),
        };
        private(&path, 0o600)?;
        let damaged = || KeyError::Damaged { path: path.clone() };
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| damaged())?;
        let key = SigningKey::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        let key = key.ok_or_else(damaged)?;
        if **key.id() != *id {
            return Err(damaged());
        }
        Ok(Some(key))
    }

    fn delete(&self, id: &str) -> Result<(), KeyError> {
        let path = self.path(id)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io(&path, "remove the key")(error)),
            Ok(()) => self.sync(),
        }
    }

    fn names(&self) -> Result<Vec<Arc<str>>, KeyError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io(&self.folder, "list the folder"))? {
            let name = entry.map_err(io(&self.folder, "list the folder"))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".pem")).filter(|id| is_id(id));
            names.extend(id.map(Arc::from));
        }
        names.sort();
        Ok(names)
    }

    fn sync(&self) -> Result<(), KeyError> {
        std::fs::File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io(&self.folder, "flush the folder"))
    }

    /// File work blocks, so it is done on a thread for that.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let disk = self.clone();
        tokio::task::spawn_blocking(move || work(&disk)).await.unwrap_or_else(|stopped| {
            Err(KeyError::Io { path: self.folder.to_path_buf(), what: "finish", why: stopped.to_string() })
        })
    }
}

#[async_trait]
impl KeyStore for Disk {
    async fn create(&self, spec: KeySpec) -> Result<Arc<SigningKey>, KeyError> {
        self.blocking(move |disk| {
            let key = SigningKey::generate(spec)?;
            disk.write(&key)?;
            Ok(Arc::new(key))
        })
        .await
    }

    async fn load(&self, id: &str) -> Result<Option<Arc<SigningKey>>, KeyError> {
        let id = id.to_owned();
        self.blocking(move |disk| Ok(disk.read(&id)?.map(Arc::new))).await
    }

    async fn remove(&self, id: &str) -> Result<(), KeyError> {
        let id = id.to_owned();
        self.blocking(move |disk| disk.delete(&id)).await
    }

    async fn list(&self) -> Result<Vec<Arc<str>>, KeyError> {
        self.blocking(Self::names).await
    }
}

fn io(path: &Path, what: &'static str) -> impl Fn(std::io::Error) -> KeyError {
    let path = path.to_path_buf();
    move |error| KeyError::Io { path: path.clone(), what, why: error.to_string() }
}

/// Refuses what belongs to another user than this one; root may give us something.
pub fn owned(path: &Path) -> Result<(), KeyError> {
    owned_by(nix::unistd::geteuid().as_raw(), path)
}

fn owned_by(ours: u32, path: &Path) -> Result<(), KeyError> {
    let owner = std::fs::metadata(path).map_err(io(path, "look at it"))?.uid();
    if owner != ours && owner != 0 {
        return Err(KeyError::Foreign { path: path.to_path_buf(), owner, ours });
    }
    Ok(())
}

/// Refuses what belongs to another user, and what others than the owner can read, write or enter.
pub(super) fn private(path: &Path, wanted: u32) -> Result<(), KeyError> {
    owned(path)?;
    let mode = std::fs::metadata(path).map_err(io(path, "look at it"))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_path_buf(), mode, wanted });
    }
    Ok(())
}

/// The same of a file that we are only given to read. What root has given to a group of ours to read, and to nobody else,
/// is for us: that is how the kubelet mounts a Secret for a pod with an `fsGroup`, whatever mode was asked for.
pub(super) fn private_or_given(path: &Path) -> Result<(), KeyError> {
    let mut groups = nix::unistd::getgroups().map_err(|error| io(path, "look at our groups")(error.into()))?;
    groups.push(nix::unistd::getegid());
    let groups: Vec<u32> = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let found = std::fs::metadata(path).map_err(io(path, "look at it"))?;
    if is_given(nix::unistd::geteuid().as_raw(), &groups, (found.uid(), found.gid()), found.mode()) {
        return Ok(());
    }
    private(path, 0o600)
}

/// Whether root, who owns it, lets nobody read it but one of `groups`. To root itself nothing is given.
fn is_given(ours: u32, groups: &[u32], (owner, group): (u32, u32), mode: u32) -> bool {
    ours != 0 && owner == 0 && groups.contains(&group) && mode & 0o077 == 0o040
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn every_store_makes_loads_lists_and_removes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("a/keys")).unwrap();
        let stores: [&dyn KeyStore; 2] = [&disk, &Memory::default()];
        for store in stores {
            let mut ids = Vec::new();
            for spec in [KeySpec::P256, KeySpec::P384, KeySpec::Ed25519, KeySpec::Rsa2048] {
                let key = store.create(spec).await.unwrap();
                let again = store.load(key.id()).await.unwrap().unwrap();
                assert_eq!(again.public_key(), key.public_key());
                ids.push(key.id().clone());
            }
            ids.sort();
            assert_eq!(store.list().await.unwrap(), ids);
            store.remove(&ids[0]).await.unwrap();
            store.remove(&ids[0]).await.unwrap();
            assert!(store.load(&ids[0]).await.unwrap().is_none());
            assert_eq!(store.list().await.unwrap(), ids[1..]);
        }
    }

    #[tokio::test]
    async fn what_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let disk = Disk::open(&path).unwrap();
        let key = disk.create(KeySpec::P256).await.unwrap();
        let file = path.join(format!("{}.pem", key.id()));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
        set_mode(&file, 0o640);
        let refused = disk.load(key.id()).await.unwrap_err().to_string();
        assert!(refused.contains("mode 0640 lets others in") && refused.contains("chmod 0600"), "{refused}");
        set_mode(&path, 0o750);
        assert!(matches!(Disk::open(&path), Err(KeyError::Exposed { mode: 0o750, wanted: 0o700, .. })));
    }

    #[test]
    fn what_root_gives_to_our_group_alone_is_for_us() {
        // As the kubelet mounts a Secret with fsGroup 65532: root:65532, mode 0440.
        let given = |ours, whose, mode| is_given(ours, &[65_532], whose, mode);
        assert!(given(65_532, (0, 65_532), 0o100_440) && given(65_532, (0, 65_532), 0o100_640));
        for mode in [0o100_444, 0o100_460, 0o100_450, 0o100_442, 0o100_400] {
            assert!(!given(65_532, (0, 65_532), mode), "{mode:o}");
        }
        assert!(!given(65_532, (65_532, 65_532), 0o100_440), "who owns it could take that right away himself");
        assert!(!given(65_532, (0, 100), 0o100_440), "a group that we are not in");
        assert!(!given(0, (0, 65_532), 0o100_440), "root needs no group");
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut owner = nix::unistd::geteuid();
        if owner.is_root() {
            // What is root's is good for everybody: it needs somebody else.
            owner = 4711.into();
            nix::unistd::chown(folder.path(), Some(owner), None).unwrap();
            assert!(matches!(Disk::open(folder.path()), Err(KeyError::Foreign { owner: 4711, ours: 0, .. })));
        }
        owned_by(owner.as_raw(), folder.path()).unwrap();
        let refused = owned_by(owner.as_raw() + 1, folder.path()).unwrap_err();
        assert!(refused.to_string().contains(&format!("belongs to uid {owner}")), "{refused}");
    }

    #[tokio::test]
    async fn damaged_files_and_foreign_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let disk = Disk::open(&path).unwrap();
        let key = disk.create(KeySpec::P256).await.unwrap();
        let other = disk.create(KeySpec::P256).await.unwrap();
        let file = |key: &SigningKey| path.join(format!("{}.pem", key.id()));
        std::fs::copy(file(&other), file(&key)).unwrap();
        assert!(matches!(disk.load(key.id()).await, Err(KeyError::Damaged { .. })));
        std::fs::write(file(&key), b"-----BEGIN").unwrap();
        assert!(matches!(disk.load(key.id()).await, Err(KeyError::Damaged { .. })));
        assert!(matches!(disk.load("../../etc/passwd").await, Err(KeyError::Name(_))));
    }

    #[tokio::test]
    async fn an_unfinished_write_is_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        Disk::open(&path).unwrap();
        std::fs::write(path.join("00112233445566778899aabbccddeeff.new"), b"half").unwrap();
        let disk = Disk::open(&path).unwrap();
        assert!(disk.list().await.unwrap().is_empty());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn each_key_signs_tokens_by_its_own_algorithm() {
        let algorithm = |spec| {
            let signer = SigningKey::generate(spec).unwrap().token_signer();
            signer.map(|signer| signer.algorithm().name())
        };
        assert_eq!(algorithm(KeySpec::P256), Ok("ES256"));
        assert_eq!(algorithm(KeySpec::P384), Ok("ES384"));
        assert_eq!(algorithm(KeySpec::Rsa2048), Ok("RS256"));
        assert_eq!(algorithm(KeySpec::Ed25519), Err(SignatureError::PrivateKey));
    }

    #[test]
    fn a_key_does_not_print_itself() {
        let key = SigningKey::generate(KeySpec::P256).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({:?})", key.id()));
    }
}
