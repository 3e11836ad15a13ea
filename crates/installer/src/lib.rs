//! Puts the CRI shim on a host as a systemd service, points kubelet at it, and undoes both. `woodfrog node` calls it: in the
//! init container of the agent with the host's root mounted, or on the host itself.
//!
//! ```text
//!   install:    check ► binaries ► record ► current, unit ► shim up? ► kubelet's endpoint ► kubelet back?
//!                                              └── any failure: everything back as it was, in reverse
//!   uninstall:  check ► kubelet's endpoint ► kubelet back? ► shim, unit, binaries that nothing runs
//! ```
//!
//! Both may be run again at any time, also after a run that was killed: they look at the host, not at what they did before.
//! The one thing that they must remember, the endpoint that kubelet had, is in [`record`]'s file before it is changed.

#![forbid(unsafe_code)]

mod binaries;
mod cri;
mod error;
mod host;
mod install;
pub mod kubelet;
pub mod record;
mod root;
mod status;
mod systemd;
mod undo;
mod uninstall;
mod unit;

pub use binaries::PROGRAMS;
pub use error::Error;
pub use host::{Host, Patience};
pub use install::{Install, Installed, install};
pub use root::Root;
pub use status::{Status, status};
pub use systemd::{Init, InitError, State, Systemctl};
pub use uninstall::{Uninstall, Uninstalled, uninstall};
pub use unit::UNIT;

/// Where the binaries are on the host, a directory a version.
pub const OPT_DIR: &str = "/opt/woodfrog";
/// The version that the service runs: a symbolic link in [`OPT_DIR`].
pub const CURRENT: &str = "/opt/woodfrog/current";
/// kubelet's service.
pub const KUBELET_UNIT: &str = "kubelet.service";
/// What kubelet's configuration says when it goes through the shim.
pub const SHIM_ENDPOINT: &str = "unix:///run/woodfrog/cri.sock";
/// The endpoint that kubelet has by itself, as of Kubernetes 1.27.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

#[cfg(test)]
mod tests {
    #[test]
    fn the_file_that_keeps_containers_awake_is_the_agents() {
        use woodfrog_protocol::paths::{STATE_DIR, WIDE_AWAKE};
        assert_eq!(crate::install::WIDE_AWAKE, format!("{STATE_DIR}/{WIDE_AWAKE}"));
    }

    #[test]
    fn kubelet_is_pointed_at_the_socket_of_the_shim() {
        assert_eq!(crate::SHIM_ENDPOINT, format!("unix://{}", woodfrog_protocol::paths::CRI_SOCKET));
    }
}
