//! What is written down of a node before anything of it is made: `/run/woodfrog-testnode/NAME.json`.
//!
//! Everything else (PID 1, processes, devices) is found by the node's name or number, so the file need not keep up with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, cache::Lock, error::At as _};

/// Files that say which nodes there are.
const RUN: &str = "/run/woodfrog-testnode";
/// Directories of the nodes, on a real file system: containerd's overlayfs cannot use an overlay for its own upper directories.
pub(crate) const VAR: &str = "/var/lib/woodfrog-testnode";
/// Held while nodes come and go. A file of its own, so that it need never be removed.
const LOCK: &str = "/run/woodfrog-testnode.lock";
/// As many nodes as the hub's /24 has addresses, without the hub's.
const MOST: u8 = 250;

/// One node's entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// The node's name.
    pub(crate) name: String,
    /// Its number, from which its addresses and devices follow.
    pub(crate) number: u8,
}

/// Keeps other starters and stoppers of nodes out until it is dropped.
pub(crate) fn lock() -> Result<Lock, Error> {
    Lock::wait(Path::new(LOCK))
}

/// The names of all nodes that were started and not taken down, dead ones too.
pub fn names() -> Result<Vec<String>, Error> {
    Ok(all()?.into_iter().map(|state| state.name).collect())
}

/// All entries, by name.
pub(crate) fn all() -> Result<Vec<State>, Error> {
    let entries = match fs::read_dir(RUN) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("read", RUN)?,
    };
    let mut states = Vec::new();
    for entry in entries {
        let path = entry.at("read", RUN)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            states.extend(read(&path)?);
        }
    }
    states.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(states)
}

/// The entry of one node, if it has one.
pub(crate) fn get(name: &str) -> Result<Option<State>, Error> {
    read(&path(name))
}

/// Writes the entry of a new node with the lowest free number.
pub(crate) fn create(name: &str) -> Result<State, Error> {
    let states = all()?;
    let free = (1..=MOST).find(|number| states.iter().all(|state| state.number != *number));
    let state = State { name: name.to_owned(), number: free.ok_or(Error::TooMany(states.len()))? };
    fs::create_dir_all(RUN).at("create", RUN)?;
    let path = path(name);
    let new = path.with_extension("new");
    let json = serde_json::to_vec(&state).map_err(|source| Error::Format { path: path.clone(), source })?;
    fs::write(&new, json).at("write", &new)?;
    fs::rename(&new, &path).at("rename", &new)?;
    Ok(state)
}

/// Forgets a node; the directory goes with the last one.
pub(crate) fn remove(name: &str) -> Result<(), Error> {
    for path in [path(name).with_extension("new"), path(name)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).at("remove", path);
            }
            _ => {}
        }
    }
    let _ = fs::remove_dir(RUN);
    Ok(())
}

/// Refuses names that could not be a host name, a file name and a control group's name.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if letters && name.len() <= 32 && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase) {
        Ok(())
    } else {
        Err(Error::Name(name.to_owned()))
    }
}

/// The directory of a node on disk.
pub(crate) fn disk(name: &str) -> PathBuf {
    Path::new(VAR).join("nodes").join(name)
}

/// The content of the registry that all nodes serve.
pub(crate) fn registry() -> PathBuf {
    Path::new(VAR).join("registry")
}

fn path(name: &str) -> PathBuf {
    Path::new(RUN).join(name).with_extension("json")
}

fn read(path: &Path) -> Result<Option<State>, Error> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => serde_json::from_slice(&bytes.at("read", path)?)
            .map(Some)
            .map_err(|source| Error::Format { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in ["", "a/b", "..", ".hub", "A", "1a", "a b", &"a".repeat(33)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["a", "node-1", &"a".repeat(32)] {
            check_name(name).expect(name);
        }
    }
}
