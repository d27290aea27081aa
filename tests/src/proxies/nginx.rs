//! A running nginx.

use super::Recipe;
use crate::binary::{Command, House, Process, place};

/// An nginx in the folder of a house. Its pid file is `<name>.pid` there.
#[derive(Debug)]
pub struct Nginx(#[expect(dead_code, reason = "it ends with this")] Process);

impl Nginx {
    /// Starts it with this config, which begins as those of the page do.
    #[track_caller]
    pub fn start(house: &House, name: &str, config: Recipe) -> Self {
        let path = |name: &str| house.path(name).display().to_string();
        // It would write to places that are root's.
        let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let folders = folders.map(|kind| format!("{kind}_temp_path {};", path(&format!("{name}-{kind}")))).join("\n");
        let config = config
            .with("user www-data;", "user root;")
            .with("/run/nginx.pid", &path(&format!("{name}.pid")))
            .with("http {\n", &format!("http {{\naccess_log off;\n{folders}\n"));
        let config = house.write(&format!("{name}.conf"), config.text()).display().to_string();
        let words = ["-c", &config, "-e", &path(&format!("{name}.error")), "-g", "daemon off;"];
        Self(Process::start(Command::new(place("CHANCERY_NGINX")).args(words), house.folder(), name))
    }
}
