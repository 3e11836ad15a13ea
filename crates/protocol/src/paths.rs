//! Where things lie on a node and inside a managed container.

/// The directory of the node's sockets and control directories (a tmpfs on every distribution).
pub const RUN_DIR: &str = "/run/woodfrog";
/// State that outlives a reboot: checkpoints being built, blobs.
pub const STATE_DIR: &str = "/var/lib/woodfrog";
/// In the state directory: a file that is there while no container of the node may sleep.
pub const WIDE_AWAKE: &str = "wide-awake";
/// The agent's socket for the shim and the command, mode 0600.
pub const AGENT_SOCKET: &str = "/run/woodfrog/agent.sock";
/// The shim's socket, which kubelet uses in place of the runtime's.
pub const CRI_SOCKET: &str = "/run/woodfrog/cri.sock";
/// Parent of the control directories, one a container, each named by its token.
pub const CONTAINERS_DIR: &str = "/run/woodfrog/containers";
/// The node's page store, a directory on a tmpfs that no container sees.
pub const PAGES_DIR: &str = "/run/woodfrog/pages";
/// The node's cache of kernel features, made by `criu check`, mounted at the same path in containers.
pub const KDAT: &str = "/run/criu.kdat";

/// Where a container sees its own control directory, read-only.
pub const CONTROL_DIR: &str = "/run/woodfrog";
/// In a control directory: the static init binary.
pub const INIT: &str = "init";
/// In a control directory: what the container would have run, an [`crate::init::Command`] in a frame.
pub const COMMAND: &str = "command.bin";
/// In a control directory: the socket on which the agent awaits the container's init.
pub const INIT_SOCKET: &str = "agent.sock";
/// In a control directory: the application's HTTP API, bound by the agent and served by init.
pub const API_SOCKET: &str = "api.sock";
/// In a control directory: what a thawed application needs to know of its new life.
pub const RESTORE_JSON: &str = "restore.json";

/// In a control directory: what kubelet wanted run in a container that slept, a [`crate::agent::Hook`] in a frame. The shim leaves it there,
/// or the agent; the agent takes it at the next wake.
pub const HOOK: &str = "hook.bin";
/// In a control directory: the hooks of a thaw that have not ended yet, [`crate::agent::Hooks`] in a frame, for an agent that takes over.
pub const HOOKS_DUE: &str = "hooks-due.bin";
/// In a control directory, for less than a second: a thaw holds the application's threads on one CPU.
pub const ONE_CPU: &str = "one-cpu";

/// Container annotation that holds the control directory's token.
pub const TOKEN_ANNOTATION: &str = "dev.woodfrog/token";
/// Pod annotation (`Copied` or `Shared`) that says how its containers get their memory when they are thawed, whatever their images say.
pub const MEMORY_ANNOTATION: &str = "woodfrog.dev/memory";
/// Pod annotation (`"true"`) that puts a pod's containers under Woodfrog.
pub const MANAGED_ANNOTATION: &str = "woodfrog.dev/managed";
/// Pod annotations that say how containers from checkpoint images stand by. The shim hands them on, the agent reads them.
pub const STANDBY: [&str; 5] = [
    STANDBY_ANNOTATION,
    IDLE_TIMEOUT_ANNOTATION,
    MIN_AWAKE_TIME_ANNOTATION,
    ON_IDLE_ANNOTATION,
    MEMORY_ANNOTATION,
];
/// `Awake` (the default), `Dormant` or `Frozen`.
pub const STANDBY_ANNOTATION: &str = "woodfrog.dev/standby";
/// What becomes of a dormant application's state when it falls asleep: `Discard` (the default), or `Save`.
pub const ON_IDLE_ANNOTATION: &str = "woodfrog.dev/on-idle";
/// After how long without traffic they fall asleep again, such as `30s` or `5m`; without it they stay awake.
pub const IDLE_TIMEOUT_ANNOTATION: &str = "woodfrog.dev/idle-timeout";
/// How long they stay awake at least, likewise.
pub const MIN_AWAKE_TIME_ANNOTATION: &str = "woodfrog.dev/min-awake-time";

/// Whether `token` is one that the shim makes: 32 lower-case hexadecimal digits. Checked before a token that came
/// from outside becomes part of a path.
pub fn is_token(token: &str) -> bool {
    token.len() == 32 && token.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_cannot_leave_the_directory() {
        assert!(is_token("0123456789abcdef0123456789abcdef"));
        assert!(!is_token("../../etc"));
        assert!(!is_token("0123456789ABCDEF0123456789abcdef"));
        assert!(!is_token(""));
    }
}
