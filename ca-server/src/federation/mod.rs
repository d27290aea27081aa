//! Federation: the bundles of other trust domains are fetched from their endpoints and kept fresh
//! (SPIFFE_Federation.md).
//!
//! | file | owns |
//! |---|---|
//! | `schedule` | which relationship is polled when (pure) |
//! | `verdict` | what an answer means beside the bundle that is known (pure) |
//! | `address` | which addresses an endpoint may have (pure) |
//! | `fetch` | one HTTPS request, bounded in every way |
//! | `poll` | the loop that carries it out; [`Federation`], what others may ask of it |
//!
//! - The bundle of one trust domain never reaches that of another: each is fetched for its name, and stored under it.
//! - The last good bundle stays while an endpoint is away, and when its answer is refused.
//! - Every server polls for itself; the store's compare-and-swap lets one of two that found the same news in.

mod address;
mod fetch;
mod poll;
mod schedule;
mod verdict;

pub use self::fetch::{FetchError, Limits};
pub use self::poll::{Asks, Federation, Parts, Source, Status};
pub use self::schedule::{Attempt, Outcome};
