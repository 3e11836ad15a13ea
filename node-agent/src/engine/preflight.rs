//! What would make a dump fail, all reasons at once, before anything is touched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;
use woodfrog_protocol::agent::{Connections, Finding};

use super::runtime::ContainerInfo;
use super::tree::{FileKind, Process, Tree};

/// Largest unlinked file that a dump carries, in bytes.
pub const GHOST_LIMIT: u32 = 64 << 20;

/// Device files that a runtime puts into every container.
const STANDARD_DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Kinds of anonymous inodes that CRIU carries.
const KNOWN_ANON: [&str; 6] = ["eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "pidfd"];

/// Reasons that lie in how the container was made, whatever it does.
pub fn container(info: &ContainerInfo) -> Vec<Finding> {
    let mut findings = Vec::new();
    let process = info.spec.process().as_ref();
    if process.and_then(|p| p.terminal()).unwrap_or(false) {
        findings.push(finding(
            "tty",
            "the container has a terminal (tty: true)".into(),
            "set tty to false: a terminal belongs to whoever is attached",
        ));
    }
    let linux = info.spec.linux().as_ref();
    let namespaces = linux.and_then(|l| l.namespaces().as_ref());
    let namespace = |kind| namespaces.and_then(|all| all.iter().find(|n| n.typ() == kind));
    match namespace(LinuxNamespaceType::Pid) {
        Some(own) if own.path().is_none() => {}
        _ => findings.push(finding(
            "shared_process_namespace",
            "the container has no process namespace of its own".into(),
            "set shareProcessNamespace and hostPID to false: shared ones are not supported yet",
        )),
    }
    if namespace(LinuxNamespaceType::User).is_some() {
        findings.push(finding(
            "user_namespace",
            "the pod has a user namespace of its own".into(),
            "set hostUsers to true: user namespaces are not supported yet",
        ));
    }
    findings
}

/// Reasons that lie in what the application has open now. `made_anew` are the mount points of volumes whose files have
/// other names in each pod.
pub fn application(tree: &Tree, made_anew: &[PathBuf], connections: Connections) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(root) = tree.processes.first() else { return findings };
    for process in &tree.processes {
        namespaces(process, root, &mut findings);
        files(process, &mut findings);
        for path in paths(process).filter(|path| made_anew.iter().any(|volume| path.starts_with(volume))) {
            findings.push(finding(
                "volume_file",
                format!("{} has {} open, which the next pod has under another name", name(process), path.display()),
                "read files of ConfigMaps, Secrets and projected volumes and close them before the checkpoint",
            ));
        }
        for file in process.files.iter().filter(|file| file.is_among(&tree.strangers)) {
            findings.push(finding(
                "unix_socket",
                format!(
                    "{}, descriptor {}: a unix socket to another container or the node",
                    name(process),
                    file.fd
                ),
                "its other end cannot be dumped: close it before the checkpoint",
            ));
        }
        for map in &process.odd_maps {
            findings.push(odd_map(process, map));
        }
    }
    if connections == Connections::Keep
        && root.ids != (0, 0)
        && !tree.connections.is_empty()
        && !woodfrog_criu::can_override_resource_limits()
    {
        findings.push(finding(
            "keep_connections",
            format!(
                "connections of user {} cannot be kept: the node agent lacks CAP_SYS_RESOURCE",
                root.ids.0
            ),
            // CRIU then runs with the user's real ids, and libnftables ends a program whose ids differ.
            "give the agent CAP_SYS_RESOURCE, run the application as root, or choose connections: Close",
        ));
    }
    if connections == Connections::Refuse {
        for connection in &tree.connections {
            findings.push(finding(
                "connection",
                format!("established connection {} → {}", connection.local, connection.remote),
                "close it before the checkpoint (a hook can), or choose connections: Close",
            ));
        }
    }
    findings
}

fn namespaces(process: &Process, root: &Process, findings: &mut Vec<Finding>) {
    for (kind, inode) in &process.namespaces {
        if root.namespaces.get(kind).is_some_and(|of_root| of_root != inode) {
            findings.push(finding(
                "namespace",
                format!("{} is in a {kind} namespace of its own", name(process)),
                "sandboxes inside a container are not supported: turn the application's own sandbox off",
            ));
        }
    }
}

/// What it has open or mapped.
fn paths(process: &Process) -> impl Iterator<Item = &Path> {
    let open = process.files.iter().filter_map(|file| match &file.kind {
        FileKind::Path(path) => Some(path),
        _ => None,
    });
    open.chain(&process.mapped).map(PathBuf::as_path).collect::<BTreeSet<_>>().into_iter()
}

fn files(process: &Process, findings: &mut Vec<Finding>) {
    for file in &process.files {
        let at = format!("{}, descriptor {}", name(process), file.fd);
        match &file.kind {
            FileKind::Anon(kind) if kind == "io_uring" => findings.push(io_uring(&at)),
            FileKind::Anon(kind) if !KNOWN_ANON.contains(&kind.as_str()) => findings.push(finding(
                "unsupported_file",
                format!("{at}: a {kind} object"),
                "CRIU cannot dump it: close it before the checkpoint",
            )),
            FileKind::Device(path) if path.starts_with("/dev/pts") || path.ends_with("ptmx") => {
                findings.push(finding(
                    "tty",
                    format!("{at}: terminal {}", path.display()),
                    "start the process without a terminal",
                ));
            }
            FileKind::Device(path) if !STANDARD_DEVICES.iter().any(|d| path == Path::new(d)) => {
                findings.push(finding(
                    "device",
                    format!("{at}: device {}", path.display()),
                    "the state of devices cannot be dumped: close it before the checkpoint",
                ));
            }
            FileKind::Deleted(path, bytes) if *bytes > u64::from(GHOST_LIMIT) => findings.push(finding(
                "deleted_file",
                format!("{at}: deleted file {} of {bytes} bytes", path.display()),
                "unlinked files above 64 MiB are not carried: close it before the checkpoint",
            )),
            FileKind::Other(what) => findings.push(finding(
                "unsupported_file",
                format!("{at}: {what}"),
                "CRIU cannot dump it: close it before the checkpoint",
            )),
            _ => {}
        }
    }
}

fn odd_map(process: &Process, map: &str) -> Finding {
    let at = name(process);
    if map.contains("io_uring") {
        io_uring(&at)
    } else if map.starts_with("/SYSV") {
        finding(
            "sysv_shm",
            format!("{at} has System V shared memory {map}"),
            "it belongs to the pod's IPC namespace, which is not dumped: use POSIX shared memory",
        )
    } else {
        finding(
            "device",
            format!("{at} has mapped {map}"),
            "the state of devices cannot be dumped: unmap it before the checkpoint",
        )
    }
}

fn io_uring(at: &str) -> Finding {
    finding(
        "io_uring",
        format!("{at}: io_uring, which CRIU cannot dump"),
        "let the seccomp profile refuse it (RuntimeDefault does) before the application starts",
    )
}

fn name(process: &Process) -> String {
    format!("process {} ({})", process.inner_pid, process.name)
}

fn finding(category: &str, message: String, advice: &str) -> Finding {
    Finding { category: category.into(), message, advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Connection, OpenFile};
    use super::*;

    fn tree_with(files: Vec<FileKind>) -> Tree {
        let files = files.into_iter().zip(3..).map(|(kind, fd)| OpenFile { fd, kind }).collect();
        let process = Process { pid: 9000, inner_pid: 300, name: "app".into(), files, ..Process::default() };
        Tree { processes: vec![process], ..Tree::default() }
    }

    #[test]
    fn every_reason_is_named_at_once() {
        let mut tree = tree_with(vec![
            FileKind::Plain,
            FileKind::Anon("eventpoll".into()),
            FileKind::Anon("io_uring".into()),
            FileKind::Device("/dev/null".into()),
            FileKind::Device("/dev/kvm".into()),
            FileKind::Deleted("/tmp/small".into(), 100),
            FileKind::Deleted("/tmp/large".into(), 1 << 30),
        ]);
        tree.connections.push(Connection {
            local: "10.0.0.2:8080".parse().unwrap(),
            remote: "10.0.0.9:40000".parse().unwrap(),
        });
        tree.processes[0].odd_maps.insert("/SYSV00000001".into());
        let findings = application(&tree, &[], Connections::Refuse);
        let categories: Vec<_> = findings.iter().map(|f| f.category.as_str()).collect();
        assert_eq!(categories, ["io_uring", "device", "deleted_file", "sysv_shm", "connection"]);
        assert!(findings[1].message.contains("process 300 (app), descriptor 7: device /dev/kvm"));
        assert!(findings[4].message.contains("10.0.0.9:40000"));
    }

    #[test]
    fn connections_that_may_close_are_no_reason() {
        let mut tree = tree_with(vec![]);
        tree.connections.push(Connection {
            local: "127.0.0.1:1".parse().unwrap(),
            remote: "127.0.0.1:2".parse().unwrap(),
        });
        assert!(application(&tree, &[], Connections::Close).is_empty());
    }

    #[test]
    fn what_another_pod_does_not_have_is_named_once() {
        let mut tree = tree_with(vec![
            FileKind::Path("/etc/tls/..2026_11_22/tls.crt".into()),
            FileKind::Path("/data/table".into()),
            FileKind::Socket(77),
        ]);
        tree.processes[0].mapped.insert("/etc/tls/..2026_11_22/tls.crt".into());
        tree.strangers.insert(77);
        let findings = application(&tree, &["/etc/tls".into()], Connections::Refuse);
        let categories: Vec<_> = findings.iter().map(|f| f.category.as_str()).collect();
        assert_eq!(categories, ["volume_file", "unix_socket"]);
        assert!(findings[0].message.contains("/etc/tls/..2026_11_22/tls.crt"));
        assert!(findings[1].message.contains("descriptor 5"));
    }

    #[test]
    fn a_child_in_a_namespace_of_its_own_is_named() {
        let mut tree = tree_with(vec![]);
        tree.processes[0].namespaces.insert("mnt".into(), 1);
        let child = Process {
            inner_pid: 301,
            name: "sandbox".into(),
            namespaces: [("mnt".into(), 2)].into(),
            ..Process::default()
        };
        tree.processes.push(child);
        let findings = application(&tree, &[], Connections::Refuse);
        assert!(findings[0].message.contains("process 301 (sandbox) is in a mnt namespace of its own"));
    }
}
