//! Taking a node down, however much of it there is.

use std::path::Path;

use crate::{Error, cache, cgroup::Cgroup, hub, state};

/// See [`Node::down`](crate::Node::down).
pub(crate) fn down(name: &str) -> Result<(), Error> {
    state::check_name(name)?;
    let _lock = state::lock()?;
    clean(name)
}

/// Removes a node under the caller's lock, and with the last one what nodes share.
pub(crate) fn clean(name: &str) -> Result<(), Error> {
    // Killing its PID 1 ends every process of its PID namespace, and with them all its namespaces, mounts and devices.
    Cgroup::of(name)?.destroy()?;
    cache::remove(&state::disk(name))?;
    // Last, so that what a killed `down` left has a name by which it can be found.
    state::remove(name)?;
    if state::all()?.is_empty() {
        hub::stop()?;
        cache::remove(Path::new(state::VAR))?;
    }
    Ok(())
}
