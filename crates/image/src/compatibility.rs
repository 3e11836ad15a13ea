//! Which nodes can thaw an image: what the dump's node was, against what this node is.
//!
//! A process keeps what it found out when it started (`cpuid`, the page size, the kernel's version), so the
//! node of the thaw must offer all of it. More is fine: code that was compiled or chosen for fewer features
//! runs on more. What CRIU itself compares (criu/arch/x86/cpu.c, the instruction level) is a part of this.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a restored process relies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compatibility {
    /// The architecture as the kernel names it: `x86_64`, `aarch64`.
    pub architecture: String,
    /// The CPU's vendor: `GenuineIntel`, `AuthenticAMD`; on ARM the implementer's number.
    pub cpu_vendor: String,
    /// Instructions that programs find by `cpuid` or the auxiliary vector, named as in `/proc/cpuinfo`.
    pub cpu_features: BTreeSet<String>,
    /// Bytes of the extended state of a thread (CPUID leaf 0xd, for what the kernel enabled); 0 without.
    pub xsave_bytes: u32,
    /// The kernel's release, as in `uname -r`.
    pub kernel: String,
    /// CRIU's version, `MAJOR.MINOR.PATCH`.
    pub criu: String,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// 1 or 2. A mixed hierarchy counts as 1, for the controllers are there.
    pub cgroup_version: u8,
}

/// A reason why a node cannot thaw an image. Prints as a sentence that names both sides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Incompatibility {
    #[error("the image was frozen on {image}, this node is {node}")]
    Architecture { image: String, node: String },
    #[error("the image was frozen on a CPU of {image}, this node's is of {node}")]
    CpuVendor { image: String, node: String },
    #[error("this node's CPU lacks {}, which the image's node had", missing.join(", "))]
    CpuFeatures { missing: Vec<String> },
    #[error("the image's threads have {image} bytes of extended state (xsave), this node's CPU holds {node}")]
    Xsave { image: u32, node: u32 },
    #[error(
        "the image was frozen on Linux {image}, this node runs the older {node}: processes may rely on what \
         it lacks"
    )]
    Kernel { image: String, node: String },
    #[error("the image was written by CRIU {image}, this node's CRIU {node} is older and may not read it")]
    Criu { image: String, node: String },
    #[error("the image's pages have {image} bytes, this node's {node}")]
    PageSize { image: u64, node: u64 },
    #[error("the image was frozen under cgroup v{image}, this node uses v{node}")]
    Cgroup { image: u8, node: u8 },
}

impl Compatibility {
    /// Whether `node` can thaw what was frozen here; all reasons if it cannot.
    pub fn compatible(&self, node: &Compatibility) -> Result<(), Vec<Incompatibility>> {
        let mut reasons = Vec::new();
        let both = |image: &String, node: &String| (image.clone(), node.clone());
        if self.architecture != node.architecture {
            let (image, node) = both(&self.architecture, &node.architecture);
            // Nothing else can be compared.
            return Err(vec![Incompatibility::Architecture { image, node }]);
        }
        if self.cpu_vendor != node.cpu_vendor {
            let (image, node) = both(&self.cpu_vendor, &node.cpu_vendor);
            reasons.push(Incompatibility::CpuVendor { image, node });
        }
        let missing: Vec<String> = self.cpu_features.difference(&node.cpu_features).cloned().collect();
        if !missing.is_empty() {
            reasons.push(Incompatibility::CpuFeatures { missing });
        }
        if self.xsave_bytes > node.xsave_bytes {
            reasons.push(Incompatibility::Xsave { image: self.xsave_bytes, node: node.xsave_bytes });
        }
        // Patch releases of a kernel add nothing that a process could rely on.
        if numbers(&node.kernel, 2) < numbers(&self.kernel, 2) {
            let (image, node) = both(&self.kernel, &node.kernel);
            reasons.push(Incompatibility::Kernel { image, node });
        }
        if numbers(&node.criu, 3) < numbers(&self.criu, 3) {
            let (image, node) = both(&self.criu, &node.criu);
            reasons.push(Incompatibility::Criu { image, node });
        }
        if self.page_bytes != node.page_bytes {
            reasons.push(Incompatibility::PageSize { image: self.page_bytes, node: node.page_bytes });
        }
        if self.cgroup_version != node.cgroup_version {
            reasons.push(Incompatibility::Cgroup { image: self.cgroup_version, node: node.cgroup_version });
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

impl fmt::Display for Compatibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, Linux {}, CRIU {}, {} byte pages, cgroup v{}",
            self.architecture, self.cpu_vendor, self.kernel, self.criu, self.page_bytes, self.cgroup_version
        )
    }
}

/// The first `most` numbers of a version, so that `6.18.3-cloud` is `[6, 18]` and `4.2` is `[4, 2, 0]`.
fn numbers(version: &str, most: usize) -> Vec<u64> {
    let numeric = version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let mut numbers: Vec<u64> = numeric.split('.').map(|part| part.parse().unwrap_or(0)).take(most).collect();
    numbers.resize(most, 0);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Compatibility {
        Compatibility {
            architecture: "x86_64".into(),
            cpu_vendor: "GenuineIntel".into(),
            cpu_features: ["avx2", "sse4_2"].map(String::from).into(),
            xsave_bytes: 2696,
            kernel: "6.12.48+deb13-amd64".into(),
            criu: "4.2.1".into(),
            page_bytes: 4096,
            cgroup_version: 2,
        }
    }

    #[test]
    fn a_node_can_thaw_what_it_froze() {
        assert_eq!(node().compatible(&node()), Ok(()));
    }

    #[test]
    fn a_node_that_has_more_can_thaw() {
        let mut better = node();
        better.cpu_features.insert("avx512f".into());
        better.xsave_bytes = 11_008;
        better.kernel = "6.18.0".into();
        better.criu = "4.10".into();
        assert_eq!(node().compatible(&better), Ok(()));
    }

    #[test]
    fn a_node_that_has_less_is_told_every_reason() {
        let mut worse = node();
        worse.cpu_features.remove("avx2");
        worse.xsave_bytes = 832;
        worse.kernel = "6.9.7".into();
        worse.criu = "4.2".into();
        worse.page_bytes = 65536;
        worse.cgroup_version = 1;
        worse.cpu_vendor = "AuthenticAMD".into();
        let reasons: Vec<String> =
            node().compatible(&worse).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(reasons.len(), 7, "{reasons:?}");
        assert_eq!(reasons[1], "this node's CPU lacks avx2, which the image's node had");
        assert!(reasons[3].contains("6.12.48+deb13-amd64") && reasons[3].contains("6.9.7"));
        assert!(reasons[4].contains("4.2.1") && reasons[4].contains("CRIU 4.2 is older"));
    }

    #[test]
    fn another_architecture_is_the_only_reason() {
        let mut other = node();
        other.architecture = "aarch64".into();
        other.page_bytes = 65536;
        let reasons = node().compatible(&other).unwrap_err();
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].to_string(), "the image was frozen on x86_64, this node is aarch64");
    }

    #[test]
    fn patch_releases_of_a_kernel_do_not_matter() {
        let mut older = node();
        older.kernel = "6.12.1".into();
        assert_eq!(node().compatible(&older), Ok(()));
    }
}
