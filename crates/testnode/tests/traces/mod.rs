//! What a node could leave behind. Other nodes may come and go meanwhile, so only what is this node's counts.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use woodfrog_testnode::{Node, names};

/// The namespaces of a node, by the kernel's numbers (`net:[4026532000]`).
#[derive(Debug, Default)]
pub(crate) struct Traces {
    namespaces: BTreeSet<PathBuf>,
}

impl Traces {
    /// Notes the namespaces of a node that runs.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let own = namespaces(Path::new("/proc/self/ns"));
        let namespaces: BTreeSet<_> = namespaces(&PathBuf::from(format!("/proc/{}/ns", node.pid())))
            .difference(&own)
            .cloned()
            .collect();
        ensure!(namespaces.len() >= 6, "a node has namespaces of its own: {namespaces:?}");
        Ok(Self { namespaces })
    }

    /// Fails if any process, namespace, mount, control group, device or file of the node is left.
    pub(crate) fn assert_gone(&self, name: &str) -> Result<()> {
        // The kernel takes a network namespace down in the background.
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut left = self.left(name)?;
        while !left.is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(50));
            left = self.left(name)?;
        }
        ensure!(left.is_empty(), "node {name} left {left:?}");
        Ok(())
    }

    fn left(&self, name: &str) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let process = entry.path();
            // A killed process is over at once; as a zombie it waits for the host's PID 1, which is not ours to hurry.
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')) {
                continue;
            }
            if !namespaces(&process.join("ns")).is_disjoint(&self.namespaces) {
                left.push(format!("{} in its namespaces", process.display()));
            }
            let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            if groups.contains(&format!("/woodfrog-testnode/{name}")) {
                left.push(format!("{} in its control groups", process.display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let numbers: Vec<_> =
            self.namespaces.iter().map(|namespace| namespace.display().to_string()).collect();
        for mount in mounts.lines() {
            if mount.contains("woodfrog-testnode") || numbers.iter().any(|number| mount.contains(number)) {
                left.push(mount.to_owned());
            }
        }
        let alone = names()?.is_empty();
        for mount in fs::read_to_string("/proc/self/mounts")?.lines() {
            let mut fields = mount.split(' ').skip(1);
            if let (Some(at), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) {
                let group = Path::new(at).join("woodfrog-testnode");
                left.extend(existing(if alone { group } else { group.join(name) }));
            }
        }
        left.extend(existing(format!("/run/woodfrog-testnode/{name}.json").into()));
        left.extend(existing(Path::new("/var/lib/woodfrog-testnode/nodes").join(name)));
        if alone {
            left.extend(existing("/var/lib/woodfrog-testnode".into()));
            left.extend(existing("/run/woodfrog-testnode".into()));
        }
        Ok(left)
    }
}

fn existing(path: PathBuf) -> Option<String> {
    path.exists().then(|| path.display().to_string())
}

fn namespaces(dir: &Path) -> BTreeSet<PathBuf> {
    let links = fs::read_dir(dir).into_iter().flatten().flatten();
    links.filter_map(|link| fs::read_link(link.path()).ok()).collect()
}
