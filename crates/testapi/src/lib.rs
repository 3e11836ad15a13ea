//! An API server for tests.
//!
//! ```text
//!   test ──pipe──► supervise.sh ─┬─► etcd        127.0.0.1, a free port, data in a temporary directory
//!                                └─► API server  127.0.0.1, a free port, its own certificate
//! ```
//!
//! The pipe's end is how the supervisor learns that the test is over, also when it was killed: then it ends both and removes
//! their directory. Where the API server comes from, the first that is there:
//!
//! 1. the cluster of `KUBECONFIG`, but only if `WOODFROG_REQUIRE` names `api`, since tests write to it and a person may have
//!    set it for something else;
//! 2. `kube-apiserver` and `etcd` in the directory `KUBEBUILDER_ASSETS`;
//! 3. `apiserver` and `etcd` in the directory `WOODFROG_APISERVER`, both as built below;
//! 4. the test server, built once from Debian's packages (`apiserver/`) and kept in `/var/cache/woodfrog`; it needs root.
//!
//! The test server is Kubernetes' own API server libraries around etcd in one process: resources of CRDs with schemas, rules,
//! defaults and subresources, server-side apply, watches, admission policies and webhooks are the real thing. Its core types
//! have next to no validation and few defaults, and there are no controllers, no kubelet, no garbage collection, no
//! `pods/exec`, `pods/log`, bindings, evictions or token requests. So tests that pass on it should also run on the others.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use woodfrog_testapi::{ApiServer, User};
//!
//! let server = ApiServer::start().await?;
//! let admin = server.client(&User::admin()).await?;
//! woodfrog_testapi::install_crds(&admin).await?;
//! let agent = server.client(&User::service_account("woodfrog", "agent").on_node("node-1")).await?;
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod crds;
mod error;
mod local;
mod need;
mod origin;
mod server;
mod user;

pub use crds::{install, install_crds};
pub use error::Error;
pub use need::Need;
pub use server::ApiServer;
pub use user::User;
