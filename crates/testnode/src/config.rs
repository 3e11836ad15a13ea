//! Configuration files of a node, written into its upper directory before it starts.

use std::{fs, path::Path};

use crate::{Error, error::At as _, hub, image, registry, state::State};

/// Writes all files below `root`.
pub(crate) fn write(root: &Path, state: &State) -> Result<(), Error> {
    let files = [
        ("etc/containerd/config.toml", containerd()),
        ("etc/containerd/certs.d/127.0.0.1:5000/hosts.toml", hosts_toml()),
        ("etc/cni/net.d/10-woodfrog.conflist", cni(state)),
        ("etc/docker/registry/config.yml", docker_registry()),
        ("etc/hosts", format!("127.0.0.1 localhost\n{} {}\n", hub::node_address(state.number), state.name)),
        ("etc/hostname", format!("{}\n", state.name)),
        // containerd copies it into every pod; there is no server to ask.
        ("etc/resolv.conf", "options attempts:1\n".to_owned()),
    ];
    for (name, text) in files {
        let path = root.join(name);
        let dir = path.parent().unwrap_or(root);
        fs::create_dir_all(dir).at("create", dir)?;
        fs::write(&path, text).at("write", &path)?;
    }
    Ok(())
}

/// containerd 2.1's configuration, version 3 (`docs/cri/config.md` of containerd).
fn containerd() -> String {
    let pause = image::PAUSE;
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# Snapshotters that need devices or file systems that a node has not.
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.differ.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
# Root without CAP_SYS_RESOURCE cannot lower an oom_score_adj.
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "/etc/cni/net.d"
"#
    )
}

/// The registry on loopback speaks plain HTTP.
fn hosts_toml() -> String {
    let address = registry::ADDRESS;
    format!(
        "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n"
    )
}

/// Pods on a bridge, with an address of the node's subnet, routed by the node without translation.
fn cni(state: &State) -> String {
    let subnet = hub::pod_subnet(state.number);
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "woodfrog",
  "plugins": [
    {{
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {{ "type": "host-local", "ranges": [[{{ "subnet": "{subnet}" }}]], "routes": [{{ "dst": "0.0.0.0/0" }}] }}
    }},
    {{ "type": "portmap", "capabilities": {{ "portMappings": true }} }}
  ]
}}
"#
    )
}

/// Several registries may serve one storage if they share a secret and cache nothing ("Load balancing considerations" of the
/// registry's deployment guide).
fn docker_registry() -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: /var/lib/registry\n  \
         delete:\n    enabled: true\nhttp:\n  addr: {}\n  secret: one-for-all-nodes\n",
        registry::ADDRESS
    )
}
