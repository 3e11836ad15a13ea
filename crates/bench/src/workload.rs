//! Warming an application up, and telling whether its state is still there.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use woodfrog_testkubelet::http;
use woodfrog_testnode::Node;

/// As many requests as a warm-up makes.
const REQUESTS: usize = 100;
/// Servers close a connection some time after their client has; one that is half closed cannot be restored.
const SETTLE: Duration = Duration::from_secs(1);

/// What an application held in memory when it was dumped.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    count: u64,
    checksum: String,
}

/// Warms it up.
pub(crate) fn warm_up(node: &Node, ip: IpAddr) -> Result<State> {
    for _ in 0..REQUESTS {
        http::get(node, ip, "/")?;
    }
    let checksum = http::get(node, ip, "/checksum")?;
    let state = State { count: count(node, ip)?, checksum };
    std::thread::sleep(SETTLE);
    Ok(state)
}

impl State {
    /// Fails unless the application goes on where it was: the counter by one further, the memory the same.
    pub(crate) fn check(&self, node: &Node, ip: IpAddr) -> Result<()> {
        let count = count(node, ip)?;
        ensure!(count == self.count + 1, "its state is lost: the counter was {} and is {count}", self.count);
        let checksum = http::get(node, ip, "/checksum")?;
        ensure!(
            checksum == self.checksum,
            "its memory changed: the checksum was {} and is {checksum}",
            self.checksum
        );
        Ok(())
    }
}

fn count(node: &Node, ip: IpAddr) -> Result<u64> {
    let body = http::get(node, ip, "/count")?;
    body.parse().with_context(|| format!("/count answered {body:?}"))
}
