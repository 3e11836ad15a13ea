//! What a machine must have for test nodes, and what tests do where it has not.

use std::{env, path::Path};

use crate::Error;

/// Debian packages that the host needs for nodes and their images; `cargo xtask` installs those that lack.
pub const HOST_PACKAGES: &[&str] = &[
    "bash",
    "debootstrap",
    "debian-archive-keyring",
    "gcc",
    "iproute2",
    "iptables",
    "libc6-dev",
    "mount",
    "nftables",
    "tar",
    "util-linux",
    "zstd",
];

/// Programs of [`HOST_PACKAGES`], each with its package.
const PROGRAMS: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("debootstrap", "debootstrap"),
    ("gcc", "gcc"),
    ("ip", "iproute2"),
    ("iptables-nft-restore", "iptables"),
    ("nsenter", "util-linux"),
    ("pivot_root", "util-linux"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
    ("zstd", "zstd"),
];

/// Whether `node_*` tests can run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// All is there.
    Met,
    /// What lacks; the test must be skipped with this message.
    Lacks(String),
}

impl Need {
    /// Looks at this machine. Where `WOODFROG_REQUIRE` (a list with commas, as CI sets it) names `node` and something lacks,
    /// this panics, so that a test fails rather than being skipped.
    #[must_use]
    pub fn look() -> Self {
        match check() {
            Ok(()) => Self::Met,
            Err(error) => {
                let required = env::var("WOODFROG_REQUIRE").unwrap_or_default();
                assert!(
                    !required.split(',').any(|need| need.trim() == "node"),
                    "WOODFROG_REQUIRE=node: {error}"
                );
                Self::Lacks(error.to_string())
            }
        }
    }

    /// True where a `node_*` test can go on; else the reason is printed and the test should return.
    #[must_use]
    pub fn met() -> bool {
        match Self::look() {
            Self::Met => true,
            Self::Lacks(what) => {
                eprintln!("skipped: {what}");
                false
            }
        }
    }
}

/// Names the first thing that this machine lacks.
pub(crate) fn check() -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Need("root".into()));
    }
    for (program, package) in PROGRAMS {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists());
        if !found {
            return Err(Error::Need(format!("{program}: apt-get install {package}")));
        }
    }
    Ok(())
}
