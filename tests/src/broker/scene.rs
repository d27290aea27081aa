//! A node with a workload, a broker, and one who is none.

use std::time::Duration;

use spiffe::proto::broker::{SubscribeToX509svidRequest, SubscribeToX509svidResponse, WorkloadReference};
use spiffe::proto::v1;
use tonic::{Status, Streaming};

use super::{Broker, Door, Sleeper, with_header};
use crate::house::{House, id, text};
use crate::node::Node;
use crate::operator::entry;
use crate::patience::soon;

/// How long the SVID of a broker is good.
pub const BROKER_LIFE: Duration = Duration::from_secs(300);

/// A rule that lets a broker name every process.
pub const PIDS: &str = "references = ['pid']";

/// A node with the workload `/web` (every `sleep`), the broker `/proxy`, and `/other`, which is no broker; both of these
/// are this very process.
#[derive(Debug)]
pub struct Scene {
    /// With its server.
    pub house: House,
    /// With its agent.
    pub node: Node,
    /// The broker.
    pub proxy: Broker,
    /// Who is none.
    pub other: Broker,
}

impl Scene {
    /// With these rules, as TOML: `id` is added.
    pub async fn start(rules: &[&str]) -> Self {
        let house = House::start(&[]).await;
        let rules: Vec<String> = rules.iter().map(|rule| format!("{{id = '{}', {rule}}}", id("/proxy"))).collect();
        let settings = [
            ("broker.socket", text(&house.path("broker.sock"))),
            ("broker.listen", "127.0.0.1:0".into()),
            ("broker.allow", format!("[{}]", rules.join(", "))),
        ];
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let node = Node::start(&house, "node", &settings).await;
        let operator = house.operator().await;
        let of = |path: &str, program: String| {
            let mut entry = entry(&node.id(), path);
            entry.selectors.push(format!("unix:path:{program}"));
            entry
        };
        let program = text(&std::env::current_exe().unwrap());
        operator.register(of("/web", text(&Sleeper::program()))).await;
        let short = |path| v1::Entry { x509_ttl: BROKER_LIFE.as_secs(), ..of(path, program.clone()) };
        operator.register(short("/proxy")).await;
        operator.register(short("/other")).await;
        let workload = node.workload(&house).await;
        let (proxy, other) = house
            .eventually("the brokers have their SVIDs", async || {
                let context = workload.context()?;
                let broker = |path| {
                    let identity = context.identity(path)?;
                    Ok::<_, String>(Broker {
                        svid: Some((identity.svid.clone(), identity.key.clone())),
                        bundle: identity.bundle.clone(),
                        agent: node.id(),
                        clock: house.clock(),
                    })
                };
                Ok((broker("/proxy")?, broker("/other")?))
            })
            .await;
        Self { house, node, proxy, other }
    }

    /// Where brokers of the machine knock.
    pub fn socket(&self) -> Door {
        Door::Socket(self.house.path("broker.sock"))
    }

    /// Where brokers knock over the network.
    pub fn port(&self) -> Door {
        Door::Port(self.node.broker_address())
    }

    /// What `broker` gets for a workload on the socket.
    pub async fn svids(&self, broker: &Broker, workload: Option<WorkloadReference>) -> Answer {
        svids(broker, &self.socket(), workload).await
    }

    /// How the proxy is refused on the socket, for a workload.
    pub async fn refused(&self, workload: Option<WorkloadReference>) -> Status {
        self.svids(&self.proxy, workload).await.unwrap_err()
    }
}

/// How a request for SVIDs is answered.
pub type Answer = Result<Streaming<SubscribeToX509svidResponse>, Status>;

/// What `broker` gets for a workload at `door`.
pub async fn svids(broker: &Broker, door: &Door, workload: Option<WorkloadReference>) -> Answer {
    let mut api = broker.api(door).await;
    let request = with_header(SubscribeToX509svidRequest { reference: workload });
    soon("an answer", api.subscribe_to_x509svid(request)).await.map(tonic::Response::into_inner)
}

/// The next message.
pub async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    soon("a message", stream.message()).await.map(Option::unwrap)
}

/// What [`error_info`](super::error_info) should be.
pub fn info(reason: &str, pid: Option<i32>) -> Option<(String, String, Option<String>)> {
    Some((reason.into(), "spiffe.io".into(), pid.map(|pid| pid.to_string())))
}
