//! Kubernetes, as the server sees it: the API servers of its clusters. What they are asked (whose a service-account
//! token is) and what they tell (which pods run where).

pub mod review;
