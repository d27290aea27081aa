//! `[[deliver]]`: what is delivered to files, where, for whom, and what is done after each change. In the agent's config,
//! and in the document of `chancery deliver`.
//!
//! - What holds a private key or a token is never readable by everyone: such a mode is refused.
//! - A file's name is a template: `{{name}}` of the delivery, `{{spiffe_id_path}}` with dashes for slashes,
//!   `{{trust_domain}}`. What comes out is looked at where it is filled in.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use spiffe::audience::{Audience, AudienceError};
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorError, Selectors};
use spiffe::settings;

use super::ConfigError;

pub mod action;
pub mod kong;
pub mod template;

use action::{Action, ActionKind, ActionTable};
use kong::KongEntities;
use template::{Template, TemplateError};

/// The type of the selectors that deliveries have, and no process can have.
pub const SELECTOR_KIND: &str = "deliver";
/// What environment variables that override the config of `chancery deliver` begin with.
pub const ENVIRONMENT_PREFIX: &str = "CHANCERY_DELIVER";
const MAX_DELIVERIES: usize = 256;
const MAX_FILES: usize = 64;
const MAX_ACTIONS: usize = 16;
const MAX_NAME_BYTES: usize = 64;

/// Why a delivery is refused.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// There are more than fit.
    #[error("[[deliver]] stands there {0} times: at most {MAX_DELIVERIES} are possible")]
    TooMany(usize),
    /// `chancery deliver` has nothing to do.
    #[error("nothing is delivered: add [[deliver]] with a name, a dir and [[deliver.file]]")]
    None,
    /// Two have one name.
    #[error("[[deliver]] {0} stands there twice: each needs a name of its own")]
    Twice(String),
    /// Two write to one place.
    #[error("[[deliver]] {one} and {other} have the same dir {}: each needs a dir of its own", .dir.display())]
    SameDir {
        /// The first of them.
        one: String,
        /// The second.
        other: String,
        /// The place.
        dir: PathBuf,
    },
    /// A name that is none.
    #[error("[[deliver]] name {0:?} is none: write up to {MAX_NAME_BYTES} of the characters a-z A-Z 0-9 . _ -")]
    Name(String),
    /// What is wrong with one delivery.
    #[error("[[deliver]] {0}: {1}")]
    Delivery(String, Fault),
}

/// What is wrong with one delivery.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A path that means another place for each process.
    #[error("{key} {} must be absolute", .path.display())]
    Relative {
        /// Which key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A path that leads out of itself.
    #[error("dir {} has .. in it: write where it leads", .0.display())]
    Dots(PathBuf),
    /// There is no file.
    #[error("it has no files: add [[deliver.file]] with kind and name")]
    NoFiles,
    /// More files or actions than fit.
    #[error("it has {count} {what}: at most {most} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The most.
        most: usize,
    },
    /// A name that is no template.
    #[error("file {name:?}: {fault}")]
    Template {
        /// As it is written.
        name: String,
        /// What is wrong.
        fault: TemplateError,
    },
    /// Everybody could read a secret.
    #[error("file {name:?} holds a secret, and mode {mode:04o} lets others read it: use 0600, or 0640 with a group")]
    Open {
        /// Which.
        name: String,
        /// The mode.
        mode: u32,
    },
    /// Others could change a file.
    #[error(
        "file {name:?} has mode {mode:04o}: nobody but its owner may write, and none is executed: use 0644 or less"
    )]
    Mode {
        /// Which.
        name: String,
        /// The mode.
        mode: u32,
    },
    /// One name for the files of many trust domains.
    #[error("file {0:?} is written for each trust domain: put {{{{trust_domain}}}} into its name")]
    OneName(String),
    /// The audience of a token is none.
    #[error("file {0:?}: {1}")]
    Audience(String, AudienceError),
    /// What Kong is to be told is wrong.
    #[error("file {0:?}: {1}")]
    Kong(String, String),
    /// An action that cannot be.
    #[error("action {0}: {1}")]
    Action(&'static str, String),
    /// The selector cannot be made.
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

/// One delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Unique among those of one process.
    pub name: String,
    /// What is true of it in the agent, as of a process: `deliver:<name>`, and nothing else.
    pub selectors: Selectors,
    /// Where the files are.
    pub dir: PathBuf,
    /// Which of several identities; `None`: the default one.
    pub spiffe_id: Option<SpiffeId>,
    /// Never empty.
    pub files: Vec<File>,
    /// What is done after each change, in this order.
    pub actions: Vec<Action>,
}

impl Delivery {
    /// For whom tokens are wanted.
    pub fn audiences(&self) -> BTreeSet<Audience> {
        let audience = |file: &File| match &file.kind {
            Kind::Jwt { audience } => Some(audience.clone()),
            _ => None,
        };
        self.files.iter().filter_map(audience).collect()
    }

    /// Whether anything of it is made of the SVID: else it does not change when that is renewed.
    pub fn has_svid(&self) -> bool {
        let of_file = |file: &File| !matches!(file.kind, Kind::Bundle { .. } | Kind::Jwks { .. } | Kind::Jwt { .. });
        let of_action = |action: &Action| match &action.kind {
            ActionKind::Haproxy { certificate, .. } => certificate.is_some(),
            ActionKind::Kong { .. } => true,
            _ => false,
        };
        self.files.iter().any(of_file) || self.actions.iter().any(of_action)
    }

    /// Whether anything of it is made of the roots of the own trust domain, and whether of those of others too.
    pub fn has_roots(&self) -> (bool, bool) {
        let of_file =
            |file: &File| matches!(file.kind, Kind::Bundle { .. } | Kind::Pkcs12 { .. } | Kind::KongFile { .. });
        let of_action = |action: &Action| match &action.kind {
            ActionKind::Haproxy { ca_file, .. } => ca_file.is_some(),
            ActionKind::Kong { .. } => true,
            _ => false,
        };
        let own = self.files.iter().any(of_file) || self.actions.iter().any(of_action);
        (own, self.files.iter().any(|file| matches!(file.kind, Kind::Bundle { federated: true })))
    }

    /// What is read of this machine for its files, at each write.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter_map(|file| match &file.kind {
            Kind::Pkcs12 { password_file: path } | Kind::KongFile { base: path, .. } => Some(path.as_path()),
            _ => None,
        })
    }

    /// Whether keys for JWT-SVIDs are wanted.
    pub fn has_jwks(&self) -> bool {
        self.files.iter().any(|file| matches!(file.kind, Kind::Jwks { .. }))
    }
}

/// One file, or one for each trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub kind: Kind,
    /// What it is called.
    pub name: Template,
    /// `None`: whoever runs this process.
    pub owner: Option<String>,
    /// `None`: the group of whoever runs this process.
    pub group: Option<String>,
    /// Its mode.
    pub mode: u32,
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The X.509-SVID and its intermediates, PEM.
    Chain,
    /// The private key, PKCS#8 in PEM.
    Key,
    /// The roots of the own trust domain, PEM; `federated`: a file for each trust domain.
    Bundle {
        /// Those of other trust domains too.
        federated: bool,
    },
    /// The chain and the key in one PEM file, as HAProxy wants it.
    Combined,
    /// Chain, key and the roots of the own trust domain as PKCS#12, as Java takes them.
    Pkcs12 {
        /// A file with the password in its first line.
        password_file: PathBuf,
    },
    /// A JWT-SVID.
    Jwt {
        /// For whom.
        audience: Audience,
    },
    /// The keys for JWT-SVIDs of the own trust domain, a JWK set; `federated`: a file for each trust domain.
    Jwks {
        /// Those of other trust domains too.
        federated: bool,
    },
    /// Kong's declarative config, with certificate, key and CA certificates put into it.
    KongFile {
        /// The config without them.
        base: PathBuf,
        /// What is put into it.
        entities: KongEntities,
    },
}

impl Kind {
    /// Whether whoever reads it can be the workload.
    pub fn is_secret(&self) -> bool {
        match self {
            Self::Key | Self::Combined | Self::Pkcs12 { .. } | Self::Jwt { .. } | Self::KongFile { .. } => true,
            Self::Chain | Self::Bundle { .. } | Self::Jwks { .. } => false,
        }
    }

    /// Whether there is a file for each trust domain.
    pub fn is_federated(&self) -> bool {
        matches!(self, Self::Bundle { federated: true } | Self::Jwks { federated: true })
    }
}

/// A delivery as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    name: String,
    dir: PathBuf,
    spiffe_id: Option<SpiffeId>,
    owner: Option<String>,
    group: Option<String>,
    #[serde(default, rename = "file")]
    files: Vec<FileTable>,
    #[serde(default, rename = "action")]
    actions: Vec<ActionTable>,
}

/// A file as it is written.
#[derive(Deserialize)]
struct FileTable {
    name: String,
    owner: Option<String>,
    group: Option<String>,
    mode: Option<Mode>,
    #[serde(flatten)]
    kind: KindTable,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum KindTable {
    Chain {},
    Key {},
    Bundle {
        #[serde(default)]
        federated: bool,
    },
    Combined {},
    Pkcs12 {
        password_file: PathBuf,
    },
    Jwt {
        audience: Audiences,
    },
    Jwks {
        #[serde(default)]
        federated: bool,
    },
    KongFile {
        base: PathBuf,
        #[serde(default)]
        certificate_id: Option<String>,
        #[serde(default)]
        snis: Vec<String>,
        #[serde(default)]
        services: Vec<String>,
    },
}

/// One audience, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

/// A mode, written `"0640"`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Mode(u32);

impl TryFrom<String> for Mode {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("{text:?} is no file mode: write it in octal, like \"0640\""))
    }
}

/// Reads all deliveries of a document.
pub(super) fn parse(tables: Vec<Table>) -> Result<Vec<Delivery>, DeliverError> {
    if tables.len() > MAX_DELIVERIES {
        return Err(DeliverError::TooMany(tables.len()));
    }
    let mut all: Vec<Delivery> = Vec::new();
    for table in tables {
        let delivery = table.parse()?;
        for other in &all {
            if other.name == delivery.name {
                return Err(DeliverError::Twice(delivery.name));
            }
            if other.dir == delivery.dir {
                let (one, other) = (other.name.clone(), delivery.name);
                return Err(DeliverError::SameDir { one, other, dir: delivery.dir });
            }
        }
        all.push(delivery);
    }
    Ok(all)
}

impl Table {
    fn parse(self) -> Result<Delivery, DeliverError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES || !self.name.chars().all(is_name) {
            return Err(DeliverError::Name(self.name));
        }
        let name = self.name.clone();
        self.checked().map_err(|fault| DeliverError::Delivery(name, fault))
    }

    fn checked(self) -> Result<Delivery, Fault> {
        absolute("dir", &self.dir)?;
        if self.dir.components().any(|component| component == Component::ParentDir) {
            return Err(Fault::Dots(self.dir));
        }
        if self.files.is_empty() {
            return Err(Fault::NoFiles);
        }
        for (what, count, most) in
            [("files", self.files.len(), MAX_FILES), ("actions", self.actions.len(), MAX_ACTIONS)]
        {
            if count > most {
                return Err(Fault::TooMany { what, count, most });
            }
        }
        let (owner, group) = (self.owner, self.group);
        let files: Result<_, _> = self.files.into_iter().map(|file| file.parse(&owner, &group)).collect();
        let actions: Result<_, _> = self.actions.into_iter().map(ActionTable::parse).collect();
        let dir = self.dir.components().collect();
        let selectors = Selectors::new([Selector::parse(&format!("{SELECTOR_KIND}:{}", self.name))?])?;
        let (name, spiffe_id) = (self.name, self.spiffe_id);
        Ok(Delivery { name, selectors, dir, spiffe_id, files: files?, actions: actions? })
    }
}

impl FileTable {
    fn parse(self, owner: &Option<String>, group: &Option<String>) -> Result<File, Fault> {
        let template = Template::parse(&self.name).map_err(|fault| Fault::Template { name: self.name.clone(), fault });
        let (name, kind) = (template?, self.kind.parse(&self.name)?);
        if kind.is_federated() && !name.tells_trust_domains_apart() {
            return Err(Fault::OneName(self.name));
        }
        let (owner, group) = (self.owner.or_else(|| owner.clone()), self.group.or_else(|| group.clone()));
        let usual = match (kind.is_secret(), &group) {
            (true, None) => 0o600,
            (true, Some(_)) => 0o640,
            (false, _) => 0o644,
        };
        let mode = self.mode.map_or(usual, |Mode(mode)| mode);
        if mode & 0o133 != 0 {
            return Err(Fault::Mode { name: self.name, mode });
        }
        if kind.is_secret() && mode & 0o007 != 0 {
            return Err(Fault::Open { name: self.name, mode });
        }
        Ok(File { kind, name, owner, group, mode })
    }
}

impl KindTable {
    fn parse(self, name: &str) -> Result<Kind, Fault> {
        Ok(match self {
            Self::Chain {} => Kind::Chain,
            Self::Key {} => Kind::Key,
            Self::Bundle { federated } => Kind::Bundle { federated },
            Self::Combined {} => Kind::Combined,
            Self::Pkcs12 { password_file } => {
                absolute("password_file", &password_file)?;
                Kind::Pkcs12 { password_file }
            }
            Self::Jwt { audience } => {
                let values = match audience {
                    Audiences::One(value) => vec![value],
                    Audiences::Several(values) => values,
                };
                let audience = Audience::parse(&values).map_err(|error| Fault::Audience(name.to_owned(), error))?;
                Kind::Jwt { audience }
            }
            Self::Jwks { federated } => Kind::Jwks { federated },
            Self::KongFile { base, certificate_id, snis, services } => {
                absolute("base", &base)?;
                let wrong = |why| Fault::Kong(name.to_owned(), why);
                let entities = KongEntities::parse(certificate_id, snis, services).map_err(wrong)?;
                Kind::KongFile { base, entities }
            }
        })
    }
}

fn absolute(key: &'static str, path: &Path) -> Result<(), Fault> {
    if path.is_absolute() { Ok(()) } else { Err(Fault::Relative { key, path: path.to_owned() }) }
}

/// What `chancery deliver` is told.
#[derive(Clone, Debug)]
pub struct Standalone {
    /// The socket of the Workload API: `unix:///run/chancery/workload.sock`, or its path. `None`: the usual one.
    pub workload_socket: Option<String>,
    /// Never empty.
    pub deliveries: Vec<Delivery>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    workload_socket: Option<String>,
    #[serde(default)]
    deliver: Vec<Table>,
}

impl Standalone {
    /// Reads a document with `variables` laid over it.
    pub fn parse(text: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let document: Document = settings::parse(text, ENVIRONMENT_PREFIX, variables)?;
        let deliveries = parse(document.deliver)?;
        if deliveries.is_empty() {
            return Err(DeliverError::None.into());
        }
        Ok(Self { workload_socket: document.workload_socket, deliveries })
    }
}

/// The longest that one action may take where nothing else is said.
pub const USUAL_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
