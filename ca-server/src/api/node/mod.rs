//! The Node door: what agents call.

mod attest;
mod batch;
mod issue;
mod issue_tokens;
mod renew;
mod sync;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use spiffe::proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Doors;
use super::rights::Admitted;
use super::status::Refusal;
use crate::authority::issuer::Signed;
use crate::origin::Origin;
pub use batch::MOST_REQUESTS;

/// How many messages may wait for a slow agent.
const WAITING: usize = 4;

/// The service of `node.proto`.
#[derive(Clone, Debug)]
pub struct NodeDoor(pub Arc<Doors>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::node_server::Node for NodeDoor {
    type AttestStream = Answers<v1::AttestResponse>;
    type SyncStream = Answers<v1::SyncResponse>;

    async fn attest(
        &self,
        request: Request<Streaming<v1::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let admitted = admitted(&request)?;
        let (to, answers) = mpsc::channel(WAITING);
        let attesting = attest::Attesting { doors: Arc::clone(&self.0), admitted, to };
        tokio::spawn(attesting.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let admitted = admitted(&request)?;
        let _timer = self.0.metrics.time("Renew");
        let svid = renew::renew(&self.0, &admitted, &request.into_inner().csr).await?;
        Ok(Response::new(v1::RenewResponse { svid: Some(svid) }))
    }

    async fn sync(&self, request: Request<Streaming<v1::SyncRequest>>) -> Result<Response<Self::SyncStream>, Status> {
        let admitted = admitted(&request)?;
        let holder = admitted.agent().map_err(Refusal::from)?.clone();
        let open = self.0.syncing.take(Origin::Agent(holder.id.clone())).ok_or_else(|| {
            Refusal::overloaded("this agent has too many Sync streams that it does not read: it has to close them")
        })?;
        let (to, answers) = mpsc::channel(sync::WAITING);
        let syncing = sync::Syncing {
            holder,
            views: Arc::clone(&self.0.views),
            connected: self.0.connected.clone(),
            clock: Arc::clone(&self.0.clock),
            stop: self.0.stop.clone(),
            to,
        };
        tokio::spawn(syncing.run(request.into_inner()));
        // The place is free when the answers are gone, read or not.
        let answers = ReceiverStream::new(answers).inspect(move |_| _ = &open);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn issue_x509_svids(
        &self,
        request: Request<v1::IssueX509SvidsRequest>,
    ) -> Result<Response<v1::IssueX509SvidsResponse>, Status> {
        let admitted = admitted(&request)?;
        let _timer = self.0.metrics.time("IssueX509Svids");
        let response = issue::issue(&self.0, &admitted, request.into_inner().requests).await?;
        Ok(Response::new(response))
    }

    async fn issue_jwt_svids(
        &self,
        request: Request<v1::IssueJwtSvidsRequest>,
    ) -> Result<Response<v1::IssueJwtSvidsResponse>, Status> {
        let admitted = admitted(&request)?;
        let _timer = self.0.metrics.time("IssueJwtSvids");
        Ok(Response::new(issue_tokens::jwt(&self.0, &admitted, request.into_inner().requests).await?))
    }

    async fn issue_wit_svids(
        &self,
        request: Request<v1::IssueWitSvidsRequest>,
    ) -> Result<Response<v1::IssueWitSvidsResponse>, Status> {
        let admitted = admitted(&request)?;
        let _timer = self.0.metrics.time("IssueWitSvids");
        Ok(Response::new(issue_tokens::wit(&self.0, &admitted, request.into_inner().requests).await?))
    }
}

fn admitted<T>(request: &Request<T>) -> Result<Admitted, Status> {
    request.extensions().get::<Admitted>().cloned().ok_or_else(|| Status::internal("the request was not admitted"))
}

fn to_wire(signed: &Signed) -> v1::X509Svid {
    v1::X509Svid {
        spiffe_id: signed.id.to_string(),
        chain: signed.chain().map(|certificate| certificate.to_vec().into()).collect(),
    }
}
