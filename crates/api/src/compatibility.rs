//! What a node must be to thaw an image, as the status and the nodes' labels say it.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a restored process relies on. The rules are in `docs/format.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compatibility {
    /// The architecture as the kernel names it: x86_64, aarch64. A node must have the same.
    pub architecture: String,
    /// The CPU's vendor: GenuineIntel, AuthenticAMD; on ARM the implementer's number. A node must have the same.
    pub cpu_vendor: String,
    /// Instructions that programs can find, named as in /proc/cpuinfo. A node must have all of them; more are fine.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cpu_features: BTreeSet<String>,
    /// Bytes of the extended state of a thread. A node must have as much or more.
    pub xsave_bytes: i64,
    /// The kernel's release. A node's must be the same or newer, by the first two numbers.
    pub kernel: String,
    /// CRIU's version. A node's must be the same or newer.
    pub criu: String,
    /// Bytes of a page. A node's must be the same.
    pub page_bytes: i64,
    /// 1 or 2. A node's must be the same.
    pub cgroup_version: i32,
}
