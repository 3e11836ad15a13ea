//! Where kubelet's endpoint is set on this host, and setting it there.
//!
//! As kubeadm runs kubelet, what comes later wins:
//!
//! ```text
//!   /var/lib/kubelet/config.yaml          containerRuntimeEndpoint; kubeadm from 1.34
//!   --config-dir DIR, DIR/*.conf          in the order of their names
//!   /var/lib/kubelet/kubeadm-flags.env    --container-runtime-endpoint; kubeadm before 1.34
//!   /etc/default/kubelet, /etc/sysconfig/kubelet
//! ```
//!
//! The setting is changed where it counts. Where there is a drop-in directory and no flag, a file of ours goes in there.

mod edit;

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::{Root, SHIM_ENDPOINT};

const CONFIG: &str = "/var/lib/kubelet/config.yaml";
const KUBEADM_FLAGS: &str = "/var/lib/kubelet/kubeadm-flags.env";
/// Files of flags in the order in which they come on kubelet's command line.
const FLAG_FILES: &[&str] = &[KUBEADM_FLAGS, "/etc/default/kubelet", "/etc/sysconfig/kubelet"];
const DROP_IN: &str = "99-woodfrog.conf";

/// Kubernetes distributions that we know and leave alone: a path that gives them away, their name, what to do by hand.
const OTHERS: &[(&str, &str, &str)] = &[
    (
        "/var/lib/rancher/rke2",
        "this is a node of RKE2",
        "add kubelet-arg: [container-runtime-endpoint=unix:///run/woodfrog/cri.sock] to /etc/rancher/rke2/config.yaml, \
         and give --runtime unix:///run/k3s/containerd/containerd.sock",
    ),
    (
        "/var/lib/rancher/k3s",
        "this is a node of K3s",
        "add kubelet-arg: [container-runtime-endpoint=unix:///run/woodfrog/cri.sock] to /etc/rancher/k3s/config.yaml, \
         and give --runtime unix:///run/k3s/containerd/containerd.sock",
    ),
    (
        "/var/lib/k0s",
        "this is a node of k0s",
        "start the worker with --kubelet-extra-args=--container-runtime-endpoint=unix:///run/woodfrog/cri.sock, and give \
         --runtime unix:///run/k0s/containerd.sock",
    ),
    (
        "/var/snap/microk8s",
        "this is a node of MicroK8s",
        "set --container-runtime-endpoint=unix:///run/woodfrog/cri.sock in /var/snap/microk8s/current/args/kubelet, and \
         give --runtime unix:///var/snap/microk8s/common/run/containerd.sock",
    ),
    (
        "/etc/eks",
        "this is a node of Amazon EKS",
        "set containerRuntimeEndpoint: unix:///run/woodfrog/cri.sock under spec.kubelet.config of its NodeConfig",
    ),
];

/// Who points kubelet at the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// We do, where kubeadm set kubelet up.
    Auto,
    /// Whoever runs the node.
    ByHand,
}

/// kubelet's endpoint, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file in which to change it, as on the host.
    pub file: String,
    /// The endpoint that counts; None: kubelet's default.
    pub endpoint: Option<String>,
}

impl Found {
    /// Goes through the shim.
    pub fn is_shim(&self) -> bool {
        self.endpoint.as_deref() == Some(SHIM_ENDPOINT)
    }
}

/// Finds kubelet's endpoint.
///
/// # Errors
/// This kubelet is not kubeadm's, which [`Error::Unsupported`] answers with what to do; its files cannot be read.
pub fn find(root: &Root) -> Result<Found, Error> {
    let config = root.read(CONFIG)?;
    let by_kubeadm = root.exists(KUBEADM_FLAGS)
        || ["/etc", "/usr/lib", "/lib", "/usr/local/lib"]
            .iter()
            .any(|dir| root.exists(&format!("{dir}/systemd/system/kubelet.service.d/10-kubeadm.conf")));
    let Some(config) = config.filter(|_| by_kubeadm) else { return Err(unsupported(root)) };

    let mut dir = None;
    for file in FLAG_FILES.iter().rev() {
        let Some(text) = root.read(file)? else { continue };
        if let Some(endpoint) = edit::flag(&text) {
            return Ok(Found { file: (*file).to_owned(), endpoint: Some(endpoint.to_owned()) });
        }
        dir = dir.or_else(|| edit::config_dir(&text).map(str::to_owned));
    }
    let mut found = Found { file: CONFIG.into(), endpoint: setting(CONFIG, &config)? };
    if let Some(dir) = dir {
        found.file = format!("{dir}/{DROP_IN}");
        for file in drop_ins(root, &dir)? {
            let text = root.read(&file)?.unwrap_or_default();
            found.endpoint = setting(&file, &text)?.or(found.endpoint);
        }
    }
    Ok(found)
}

/// Sets or, with None, removes the endpoint in a file that [`find`] named.
pub(crate) fn point(root: &Root, file: &str, endpoint: Option<&str>) -> Result<(), Error> {
    let cannot = |reason: String| Error::Edit {
        path: file.to_owned(),
        reason,
        endpoint: endpoint.unwrap_or("the container runtime's").to_owned(),
    };
    if is_ours(file) {
        return match endpoint {
            Some(endpoint) => root.write(file, drop_in(endpoint).as_bytes(), 0o644),
            None => root.remove(file),
        };
    }
    let saved = root.read(file)?.ok_or_else(|| cannot("it is gone".into()))?;
    let text = if FLAG_FILES.contains(&file) {
        let endpoint = endpoint.unwrap_or(crate::DEFAULT_ENDPOINT);
        edit::set_flag(&saved, endpoint)
            .ok_or_else(|| cannot("it has no --container-runtime-endpoint".into()))?
    } else {
        edit::set_setting(&saved, endpoint).map_err(cannot)?
    };
    let mode = fs::metadata(root.path(file))
        .map_or(0o644, |m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()));
    root.write(file, text.as_bytes(), mode & 0o7777)
}

/// A file in a drop-in directory that we made.
pub(crate) fn is_ours(file: &str) -> bool {
    file.ends_with(&format!("/{DROP_IN}"))
}

fn setting(file: &str, text: &str) -> Result<Option<String>, Error> {
    edit::setting(text).map_err(|reason| Error::Edit {
        path: file.to_owned(),
        reason,
        endpoint: SHIM_ENDPOINT.to_owned(),
    })
}

/// kubelet's drop-in files in their order.
fn drop_ins(root: &Root, dir: &str) -> Result<Vec<String>, Error> {
    let path = root.path(dir);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let mut files: Vec<String> = entries
        .flatten()
        .map(|entry| format!("{dir}/{}", entry.file_name().to_string_lossy()))
        .filter(|file| Path::new(file).extension().is_some_and(|extension| extension == "conf"))
        .collect();
    files.sort();
    Ok(files)
}

fn drop_in(endpoint: &str) -> String {
    format!(
        "# Made by `woodfrog node install`, removed by `woodfrog node uninstall`.\n\
         apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         containerRuntimeEndpoint: {endpoint}\n"
    )
}

fn unsupported(root: &Root) -> Error {
    let known = OTHERS.iter().find(|(path, _, _)| root.exists(path));
    let (what, advice) = known.map_or(
        (
            "no kubelet that kubeadm set up is on this host (/var/lib/kubelet/config.yaml and kubeadm-flags.env)",
            "set containerRuntimeEndpoint: unix:///run/woodfrog/cri.sock in kubelet's configuration",
        ),
        |(_, what, advice)| (*what, *advice),
    );
    Error::Unsupported { what: what.to_owned(), advice: advice.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for (path, text) in files {
            root.write(path, text.as_bytes(), 0o644).unwrap();
        }
        (dir, root)
    }

    const PLAIN: (&str, &str) = (CONFIG, "kind: KubeletConfiguration\n");
    const NAMED: (&str, &str) = (CONFIG, "containerRuntimeEndpoint: unix:///config\n");
    const FLAGS: (&str, &str) =
        (KUBEADM_FLAGS, "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///flag --v=1\"\n");
    const NO_FLAGS: (&str, &str) = (KUBEADM_FLAGS, "KUBELET_KUBEADM_ARGS=\"\"\n");

    #[test]
    fn the_endpoint_is_found_where_it_counts() {
        let extra =
            ("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=unix:///extra\n");
        let dir =
            ("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubernetes/kubelet.conf.d\n");
        let theirs =
            ("/etc/kubernetes/kubelet.conf.d/10-a.conf", "containerRuntimeEndpoint: unix:///dropin\n");
        let ours = "/etc/kubernetes/kubelet.conf.d/99-woodfrog.conf";
        for (files, file, endpoint) in [
            (vec![NAMED, FLAGS], KUBEADM_FLAGS, Some("unix:///flag")),
            (vec![NAMED, FLAGS, extra], "/etc/default/kubelet", Some("unix:///extra")),
            (vec![NAMED, NO_FLAGS], CONFIG, Some("unix:///config")),
            (vec![PLAIN, NO_FLAGS], CONFIG, None),
            (vec![NAMED, NO_FLAGS, dir], ours, Some("unix:///config")),
            (vec![NAMED, NO_FLAGS, dir, theirs], ours, Some("unix:///dropin")),
        ] {
            let (_dir, root) = host(&files);
            let found = find(&root).unwrap();
            assert_eq!((found.file.as_str(), found.endpoint.as_deref()), (file, endpoint), "{files:?}");
            point(&root, file, Some(SHIM_ENDPOINT)).unwrap();
            assert!(find(&root).unwrap().is_shim(), "{files:?}");
        }
    }

    #[test]
    fn a_host_that_kubeadm_did_not_set_up_is_told_what_to_do() {
        let (_dir, root) = host(&[PLAIN]);
        assert!(find(&root).unwrap_err().to_string().contains("set containerRuntimeEndpoint"));
        for (path, what, _) in OTHERS {
            let (_dir, root) = host(&[(&format!("{path}/x"), "")]);
            let error = find(&root).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("--kubelet none"), "{error}");
        }
    }

    #[test]
    fn a_broken_configuration_is_named() {
        let (_dir, root) = host(&[(CONFIG, "{"), NO_FLAGS]);
        assert!(find(&root).unwrap_err().to_string().contains(CONFIG));
    }
}
