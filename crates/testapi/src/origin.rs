//! Where the API server of the tests comes from.

use std::env;
use std::path::{Path, PathBuf};

use crate::Error;

/// The test server's sources. `cargo xtask test` builds them too, ahead of the tests.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/apiserver");
const BUILD: &str = include_str!("../scripts/build.sh");

/// A source of API servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A cluster that runs already: the kubeconfig's path.
    Cluster(PathBuf),
    /// A directory with kube-apiserver and etcd.
    Assets(PathBuf),
    /// A directory with the test server and etcd.
    Built(PathBuf),
    /// The test server, to be built where it is not in the cache.
    Debian,
}

/// Whether tests that lack an API server must fail.
pub(crate) fn required() -> bool {
    env::var("WOODFROG_REQUIRE").is_ok_and(|list| list.split(',').any(|need| need.trim() == "api"))
}

impl Origin {
    /// The one that this machine's environment asks for.
    pub(crate) fn choose() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // Several paths with colons are kubectl's business; tests take the first.
        let kubeconfig = set("KUBECONFIG").and_then(|list| env::split_paths(&list).next());
        match (kubeconfig.filter(|_| required()), set("KUBEBUILDER_ASSETS"), set("WOODFROG_APISERVER")) {
            (Some(path), _, _) => Self::Cluster(path),
            (_, Some(dir), _) => Self::Assets(dir),
            (_, _, Some(dir)) => Self::Built(dir),
            _ => Self::Debian,
        }
    }

    /// What of it is missing.
    pub(crate) fn lacks(&self) -> Option<String> {
        let missing = |dir: &Path, names: &[&str]| {
            names
                .iter()
                .map(|name| dir.join(name))
                .find(|path| !path.is_file())
                .map(|path| format!("{} is missing", path.display()))
        };
        match self {
            Self::Cluster(path) => {
                (!path.is_file()).then(|| format!("KUBECONFIG names {}, which is missing", path.display()))
            }
            Self::Assets(dir) => missing(dir, &["kube-apiserver", "etcd"]),
            Self::Built(dir) => missing(dir, &["apiserver", "etcd"]),
            Self::Debian => match woodfrog_testnode::Need::look() {
                woodfrog_testnode::Need::Met => None,
                woodfrog_testnode::Need::Lacks(what) => Some(format!(
                    "to build the test API server, {what}; or set KUBEBUILDER_ASSETS to a directory with kube-apiserver and etcd"
                )),
            },
        }
    }
}

/// The directory with the test server and etcd, built if need be: that takes 4 to 12 minutes.
pub(crate) fn built() -> Result<PathBuf, Error> {
    Ok(woodfrog_testnode::cached("build the test API server", BUILD, Path::new(SOURCES))?)
}
