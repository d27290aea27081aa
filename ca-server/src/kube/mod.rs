//! Kubernetes, as the server sees it: the API servers of its clusters. What they are asked (whose a service-account
//! token is) and what they tell (which pods run where).
//!
//! - An API server that is lost, hangs or flaps changes nothing that is known: what was last said stays.
//! - Whatever it is asked has a time limit.

pub mod client;
pub mod lookup;
pub mod object;
pub mod publish;
pub mod review;
pub mod watch;
