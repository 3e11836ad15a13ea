//! Every time limit of the shim, in one place.

use std::time::Duration;

/// Between the first and the second try to connect to the runtime.
pub(crate) const RECONNECT: Duration = Duration::from_millis(50);
/// One question of the shim's own to the runtime (`ImageStatus`, `ContainerStatus`, `ListContainers`).
pub(crate) const QUERY: Duration = Duration::from_secs(5);
/// The agent's answer to `ContainerCreated`; later the container starts cold.
pub(crate) const CREATED: Duration = Duration::from_secs(1);
/// The agent's answer to `AwaitStart`; later `StartContainer` returns and init decides by itself.
pub(crate) const START: Duration = Duration::from_secs(35);
/// Left of the client's own deadline when `StartContainer` returns at the latest.
pub(crate) const START_MARGIN: Duration = Duration::from_millis(500);
/// The agent's answer to `ContainerStopping` and `ContainerRemoved`, which nothing depends on.
pub(crate) const TOLD: Duration = Duration::from_millis(200);
/// How long init waits for the agent before it starts cold.
pub(crate) const HELLO: Duration = Duration::from_secs(5);
/// How long a thaw may take once init has granted the lease.
pub(crate) const THAW: Duration = Duration::from_secs(30);
/// After a creation of unknown outcome, until its control directory is looked at again.
pub(crate) const SWEEP_AFTER: Duration = Duration::from_secs(60);
/// How long calls may go on after the shim was told to end.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// Pause after `accept` failed, for example because no descriptors are left.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
