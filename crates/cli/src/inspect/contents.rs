//! What CRIU's files hold, in the words of `woodfrog inspect`.

use serde::Serialize;
use woodfrog_criu::images::{Checkpoint, FileType, MemoryByKind, Socket, SocketState, Task, TaskState};

/// Processes and sockets of a checkpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Contents {
    /// In the order of the tree, the root first.
    pub(super) processes: Vec<Process>,
    /// Sockets of IPv4 and IPv6.
    pub(super) sockets: Vec<SocketView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) name: String,
    /// `running`, `stopped` or `dead`.
    pub(super) state: &'static str,
    pub(super) threads: usize,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) memory: Memory,
    pub(super) files: Vec<OpenFile>,
}

/// Bytes; see [`MemoryByKind`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    pub(super) stored_bytes: u64,
    pub(super) anonymous_bytes: u64,
    pub(super) heap_bytes: u64,
    pub(super) stack_bytes: u64,
    pub(super) file_private_bytes: u64,
    pub(super) file_shared_bytes: u64,
    pub(super) shared_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OpenFile {
    pub(super) fd: u32,
    pub(super) kind: &'static str,
    pub(super) target: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SocketView {
    pub(super) protocol: String,
    /// `listening`, `connected` or `unconnected`.
    pub(super) state: &'static str,
    pub(super) local: String,
    pub(super) peer: Option<String>,
}

impl Contents {
    /// Sums a checkpoint up.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            processes: checkpoint.tasks.iter().map(|task| Process::of(checkpoint, task)).collect(),
            sockets: checkpoint.sockets().map(SocketView::from).collect(),
        }
    }
}

impl Process {
    fn of(checkpoint: &Checkpoint, task: &Task) -> Self {
        let creds = task.creds();
        Self {
            pid: task.pid(),
            parent: task.entry.ppid,
            name: task.comm().to_owned(),
            state: match task.state {
                TaskState::Alive => "running",
                TaskState::Stopped => "stopped",
                TaskState::Dead => "dead",
            },
            threads: task.entry.threads.len(),
            uid: creds.map(|creds| creds.euid),
            gid: creds.map(|creds| creds.egid),
            memory: checkpoint.memory(task).into(),
            files: checkpoint
                .open_files(task)
                .into_iter()
                .map(|file| OpenFile { fd: file.fd, kind: FileType::name(file.kind), target: file.target })
                .collect(),
        }
    }
}

impl From<MemoryByKind> for Memory {
    fn from(memory: MemoryByKind) -> Self {
        Self {
            stored_bytes: memory.stored,
            anonymous_bytes: memory.anonymous,
            heap_bytes: memory.heap,
            stack_bytes: memory.stack,
            file_private_bytes: memory.file_private,
            file_shared_bytes: memory.file_shared,
            shared_bytes: memory.shared,
        }
    }
}

impl From<Socket> for SocketView {
    fn from(socket: Socket) -> Self {
        Self {
            protocol: match (socket.kind, socket.protocol) {
                (_, 6) => "tcp".into(),
                (_, 17) => "udp".into(),
                (kind, protocol) => format!("type {kind} protocol {protocol}"),
            },
            state: match socket.state {
                SocketState::Listening => "listening",
                SocketState::Connected => "connected",
                SocketState::Unconnected => "unconnected",
            },
            local: socket.local.to_string(),
            peer: socket.peer.map(|peer| peer.to_string()),
        }
    }
}
