//! A running Envoy, and what it says of itself at its admin port.

use std::collections::BTreeMap;

use super::plain::{Answer, get};
use super::{Recipe, program};
use crate::binary::{Command, House, Process};

/// How long it may take to be ready, in seconds.
const READY: u64 = 60;

/// An Envoy. It dies with the thread that started it.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    admin: u16,
}

impl Envoy {
    /// Starts the program `program` of the folder of `house` with this config, whose admin port is `admin`, and returns
    /// when it answers there.
    #[track_caller]
    pub fn start(house: &House, name: &str, (program_name, recipe, admin): (&str, &Recipe, u16)) -> Self {
        let program = program(house, "CHANCERY_ENVOY", program_name);
        let config = house.write(&format!("{name}.yaml"), recipe.text()).display().to_string();
        let words = ["--config-path", &config, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"];
        let mut process = Process::start(Command::new(program).args(words), house.folder(), name);
        process.wait_for("its admin port", READY, |_| get(admin, "/ready").ok().map(drop));
        Self { process, admin }
    }

    /// Waits until `look` finds something, while it runs.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, seconds: u64, mut look: impl FnMut(u16) -> Option<T>) -> T {
        let admin = self.admin;
        self.process.wait_for(what, seconds, |_| look(admin))
    }

    /// Returns when everything that it asked for is there.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        self.wait_for("being ready", READY, |admin| {
            get(admin, "/ready").ok().filter(|answer| answer.status == 200 && answer.body.starts_with("LIVE")).map(drop)
        });
    }

    /// Its counters and gauges.
    #[track_caller]
    pub fn stats(&self) -> BTreeMap<String, u64> {
        let Answer { body, .. } = get(self.admin, "/stats").expect("Envoy answers");
        let numbers = body.lines().filter_map(|line| line.split_once(": "));
        numbers.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    /// The sum of all numbers whose name begins and ends like this.
    #[track_caller]
    pub fn sum(&self, begins: &str, ends: &str) -> u64 {
        let stats = self.stats();
        let these = stats.iter().filter(|(name, _)| name.starts_with(begins) && name.ends_with(ends));
        these.map(|(_, value)| value).sum()
    }

    /// How many secrets it did not take.
    #[track_caller]
    pub fn rejected(&self) -> u64 {
        self.sum("sds.", ".update_rejected")
    }

    /// How often it was given this secret.
    #[track_caller]
    pub fn updates(&self, secret: &str) -> u64 {
        // As in Envoy's own names of numbers.
        let name = format!("sds.{}.update_success", secret.replace("://", "_").replace(':', "_"));
        *self.stats().get(&name).unwrap_or_else(|| panic!("Envoy has no {name}"))
    }

    /// The serial number of the certificate that it shows.
    #[track_caller]
    pub fn serial(&self) -> String {
        let certs = get(self.admin, "/certs").expect("Envoy answers").body;
        let certs: serde_json::Value = serde_json::from_str(&certs).unwrap_or_else(|error| panic!("{error}: {certs}"));
        let all = certs["certificates"].as_array().into_iter().flatten();
        let mut own = all.filter_map(|one| one["cert_chain"][0]["serial_number"].as_str());
        own.next().unwrap_or_else(|| panic!("it has no certificate: {certs}")).to_owned()
    }
}
