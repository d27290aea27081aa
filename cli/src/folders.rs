//! Where things are when nobody says otherwise: root's below /run and /var/lib, everybody else's below their own
//! folders (XDG Base Directory Specification).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment, as far as it says where folders are. A value, so that it can be tried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folders {
    root: bool,
    home: Option<PathBuf>,
    data_home: Option<PathBuf>,
    runtime: Option<PathBuf>,
}

impl Folders {
    /// Of the present process.
    pub(crate) fn of_this_process() -> Self {
        Self::new(nix::unistd::geteuid().is_root(), |name| std::env::var_os(name))
    }

    fn new(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        // The specification: relative paths are to be ignored.
        let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self { root, home: folder("HOME"), data_home: folder("XDG_DATA_HOME"), runtime: folder("XDG_RUNTIME_DIR") }
    }

    /// The user's folder of our data, `~/.local/share/chancery`.
    pub(crate) fn user_data(&self) -> Option<PathBuf> {
        let base = self.data_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/share")))?;
        Some(base.join("chancery"))
    }

    /// The state of `chancery dev`.
    pub(crate) fn dev(&self) -> Option<PathBuf> {
        Some(self.user_data()?.join("dev"))
    }

    /// The admin socket of a server: the first of those where packages, `server run` and a running `chancery dev`
    /// have it that exists; the first of all where none does.
    pub(crate) fn admin_socket(&self, exists: impl Fn(&Path) -> bool) -> PathBuf {
        let packaged = PathBuf::from("/run/chancery/admin.sock");
        let of_user = self.user_data().into_iter().flat_map(|data| ["server", "dev"].map(|name| data.join(name)));
        let of_user = of_user.map(|folder| folder.join("admin.sock"));
        let known = [packaged.clone(), "/var/lib/chancery/server/admin.sock".into()];
        known.into_iter().chain(of_user).find(|path| exists(path)).unwrap_or(packaged)
    }

    /// Where a server or an agent of this user keeps its state: `server` or `agent`.
    pub(crate) fn state(&self, of: &str) -> Option<PathBuf> {
        if self.root { Some(Path::new("/var/lib/chancery").join(of)) } else { Some(self.user_data()?.join(of)) }
    }

    /// The socket of the Workload API: root's, or, where that does not exist, the user's own, or the one of a
    /// running `chancery dev`.
    pub(crate) fn workload_socket(&self, exists: impl Fn(&Path) -> bool) -> PathBuf {
        let own = self.own_workload_socket();
        let packaged = PathBuf::from("/run/chancery/workload.sock");
        let dev = self.dev().map(|dev| dev.join("workload.sock"));
        [Some(own.clone()), Some(packaged), dev].into_iter().flatten().find(|path| exists(path)).unwrap_or(own)
    }

    /// The status socket of an agent: root's, or, where that does not exist, the user's own, or the one of a running
    /// `chancery dev`.
    pub(crate) fn status_socket(&self, exists: impl Fn(&Path) -> bool) -> PathBuf {
        let packaged = PathBuf::from("/var/lib/chancery/agent");
        let own = self.state("agent").unwrap_or_else(|| packaged.clone());
        let known = [Some(packaged), Some(own.clone()), self.dev().map(|dev| dev.join("agent"))];
        let mut known = known.into_iter().flatten().map(|folder| folder.join("status.sock"));
        known.find(|path| exists(path)).unwrap_or_else(|| own.join("status.sock"))
    }

    /// Where an agent of this user serves the Workload API.
    pub(crate) fn own_workload_socket(&self) -> PathBuf {
        match &self.runtime {
            Some(runtime) if !self.root => runtime.join("chancery/workload.sock"),
            _ => "/run/chancery/workload.sock".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(root: bool, pairs: &'static [(&'static str, &'static str)]) -> Folders {
        Folders::new(root, |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_packaged_sockets_come_first_and_then_those_of_dev() {
        let user = folders(false, &[("HOME", "/home/ada"), ("XDG_RUNTIME_DIR", "/run/user/5")]);
        let dev = Path::new("/home/ada/.local/share/chancery/dev/admin.sock");
        assert_eq!(user.admin_socket(|_| true), Path::new("/run/chancery/admin.sock"));
        assert_eq!(user.admin_socket(|path| path == dev), dev);
        assert_eq!(user.admin_socket(|_| false), Path::new("/run/chancery/admin.sock"));
        assert_eq!(user.workload_socket(|_| false), Path::new("/run/user/5/chancery/workload.sock"));
        assert_eq!(
            user.workload_socket(|path| path.starts_with("/run/chancery")),
            Path::new("/run/chancery/workload.sock")
        );
    }

    #[test]
    fn a_server_that_was_told_its_trust_domain_only_is_found() {
        let config = ca_server::config::Config::parse("trust_domain = 'example.org'", []).unwrap();
        let made = config.admin_socket.as_path();
        assert_eq!(folders(true, &[]).admin_socket(|path| path == made), made);
        for root in [true, false] {
            let folders = folders(root, &[("HOME", "/home/ada")]);
            let made = folders.state("server").unwrap().join("admin.sock");
            assert_eq!(folders.admin_socket(|path| path == made), made);
        }
    }

    #[test]
    fn an_agent_that_was_told_its_data_dir_only_is_found() {
        let folders = folders(false, &[("HOME", "/home/ada")]);
        let text =
            "trust_domain = 'example.org'\nservers = ['a:1']\nworkload_socket = '/w'\nattest.kind = 'join_token'\n";
        for folder in [folders.state("agent").unwrap(), folders.dev().unwrap().join("agent")] {
            let text = format!("{text}data_dir = '{}'\n", folder.display());
            let made = node_agent::config::Config::parse(&text, []).unwrap().status_socket;
            assert_eq!(folders.status_socket(|path| path == made), made);
        }
        assert!(folders.status_socket(|_| false).starts_with("/home/ada"));
    }

    #[test]
    fn relative_folders_are_ignored() {
        let user = folders(false, &[("HOME", "/home/ada"), ("XDG_DATA_HOME", "data")]);
        assert_eq!(user.dev().unwrap(), Path::new("/home/ada/.local/share/chancery/dev"));
        assert_eq!(folders(false, &[]).dev(), None);
        assert_eq!(
            folders(true, &[("XDG_RUNTIME_DIR", "/run/user/0")]).own_workload_socket(),
            Path::new("/run/chancery/workload.sock")
        );
    }
}
