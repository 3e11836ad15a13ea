//! Starting a node.
//!
//! ```text
//! layers and images (minutes, once) ─► lock ─► clean what is dead ─► state file ─► control groups ─► directories
//!     ─► PID 1 in its namespaces ─► link to the hub ─► registry, containerd
//! ```
//!
//! Whoever is killed between two of these steps leaves what `down` finds by the node's name.

use std::fs;

use crate::{
    Error, Node, Options, app,
    cgroup::Cgroup,
    config, down,
    error::At as _,
    hub,
    layer::{Layer, colons},
    need,
    node::SERVICES,
    process,
    progress::step,
    state,
};

const ENTER: &str = include_str!("../scripts/enter.sh");

/// See [`Node::up`].
pub(crate) fn up(name: &str, options: &Options) -> Result<Node, Error> {
    state::check_name(name)?;
    need::check()?;
    let layer = Layer::node()?;
    options.images.iter().try_for_each(|app| app.build().map(drop))?;
    let _lock = state::lock()?;
    let node = match Node::attach(name) {
        Ok(node) if node.is_well() => node,
        _ => step(&format!("start node {name}"), || {
            down::clean(name)?;
            start(name, options, &layer).inspect_err(|_| {
                let _ = down::clean(name);
            })
        })?,
    };
    node.publish(&options.images)?;
    Ok(node)
}

fn start(name: &str, options: &Options, layer: &Layer) -> Result<Node, Error> {
    let state = state::create(name)?;
    let (disk, registry) = (state::disk(name), state::registry());
    for dir in ["upper", "work", "root", "containerd", "log"].map(|dir| disk.join(dir)) {
        fs::create_dir_all(&dir).at("create", dir)?;
    }
    for dir in [&registry, &options.binaries] {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    let binaries = fs::canonicalize(&options.binaries).at("find", &options.binaries)?;
    config::write(&disk.join("upper"), &state)?;
    app::publish_pause(layer, &registry)?;

    let cgroup = Cgroup::of(name)?;
    cgroup.create()?;
    let mut command = process::join(&cgroup.roots());
    command.args(["env", &format!("NAME={name}"), &format!("LOWER={}", colons(&layer.stack()))]);
    command.arg(format!("CONTAINERD={}", if options.disk { "disk" } else { "memory" }));
    for (variable, path) in [("DISK", &disk), ("REGISTRY", &registry), ("BINARIES", &binaries)] {
        command.arg(format!("{variable}={}", path.display()));
    }
    command.args([
        "unshare", "--cgroup", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "bash", "-c", ENTER,
    ]);
    let init = hub::detached(&command, &cgroup, "the node's PID 1")?;
    cgroup.settle()?;
    hub::connect(layer, &state, init)?;

    let node = Node::new(state, init);
    SERVICES.iter().try_for_each(|(service, _)| node.start_again(service))?;
    Ok(node)
}
