//! A seccomp profile for managed containers that ask for none: it refuses io_uring and nothing else.
//!
//! CRIU cannot dump io_uring, and some applications use it whenever the kernel lets them. They all have another way for
//! kernels that lack it, which `ENOSYS` says.

use std::io;
use std::path::Path;

use k8s_cri::v1::{ContainerConfig, security_profile::ProfileType};
use serde_json::json;

use crate::plan;

/// Present where the kernel has seccomp filters; containerd refuses profiles elsewhere.
const KERNEL_SUPPORT: &str = "/proc/sys/kernel/seccomp/actions_avail";

/// What a container asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A profile, which stays.
    Profile,
    /// Expressly none.
    Unconfined,
    /// Nothing: the runtime's configuration decides.
    Nothing,
    /// None, since it is privileged: containerd then sets no profile whatever the request says.
    Privileged,
}

/// What `config` asks for.
pub(crate) fn asked(config: &ContainerConfig) -> Asked {
    let Some(security) = plan::security(config) else { return Asked::Nothing };
    // The deprecated path counts only where the newer field is absent, in containerd and CRI-O alike.
    #[allow(deprecated)]
    let path = security.seccomp_profile_path.as_str();
    match &security.seccomp {
        _ if security.privileged => Asked::Privileged,
        Some(profile) if profile.profile_type() == ProfileType::Unconfined => Asked::Unconfined,
        Some(_) => Asked::Profile,
        None if path == "unconfined" => Asked::Unconfined,
        None if path.is_empty() => Asked::Nothing,
        None => Asked::Profile,
    }
}

/// Whether the runtime's configuration (JSON of containerd's CRI plugin) leaves a container that asks for nothing
/// without a profile. Not known means no: a default profile must not be replaced by a wider one.
pub(crate) fn unset_is_unconfined(configuration: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(configuration)
        .is_ok_and(|config| matches!(config["unsetSeccompProfile"].as_str(), Some("" | "unconfined")))
}

/// Writes the profile, if it is not there yet.
pub(crate) fn write(path: &Path) -> io::Result<()> {
    let profile = profile();
    if std::fs::read_to_string(path).is_ok_and(|found| found == profile) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, profile)?;
    std::fs::rename(&fresh, path)
}

/// Whether the profile can be used.
pub(crate) fn usable(path: &Path) -> bool {
    Path::new(KERNEL_SUPPORT).exists() && path.is_file()
}

/// In the OCI runtime specification's form, which is what containerd reads.
fn profile() -> String {
    // Without them libseccomp kills processes of the machine's other, 32-bit ABIs.
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": [{
            "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": nix::errno::Errno::ENOSYS as i32,
        }],
    });
    format!("{profile:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{LinuxContainerConfig, LinuxContainerSecurityContext, SecurityProfile};

    fn of(security: LinuxContainerSecurityContext) -> Asked {
        let linux =
            LinuxContainerConfig { security_context: Some(security), ..LinuxContainerConfig::default() };
        asked(&ContainerConfig { linux: Some(linux), ..ContainerConfig::default() })
    }

    fn profile_of(kind: ProfileType) -> LinuxContainerSecurityContext {
        let seccomp = Some(SecurityProfile { profile_type: kind as i32, localhost_ref: String::new() });
        LinuxContainerSecurityContext { seccomp, ..LinuxContainerSecurityContext::default() }
    }

    #[test]
    fn only_a_container_without_profile_is_given_one() {
        assert_eq!(of(profile_of(ProfileType::RuntimeDefault)), Asked::Profile);
        assert_eq!(of(profile_of(ProfileType::Localhost)), Asked::Profile);
        assert_eq!(of(profile_of(ProfileType::Unconfined)), Asked::Unconfined);
        assert_eq!(of(LinuxContainerSecurityContext::default()), Asked::Nothing);
        let privileged =
            LinuxContainerSecurityContext { privileged: true, ..profile_of(ProfileType::Unconfined) };
        assert_eq!(of(privileged), Asked::Privileged);
    }

    #[test]
    fn a_runtime_with_a_default_for_unset_profiles_keeps_it() {
        assert!(unset_is_unconfined(r#"{"unsetSeccompProfile":""}"#));
        assert!(!unset_is_unconfined(r#"{"unsetSeccompProfile":"runtime/default"}"#));
        assert!(!unset_is_unconfined("{}"));
        assert!(!unset_is_unconfined("garbage"));
    }

    #[test]
    fn the_profile_is_written_once_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/no-io-uring.json");
        write(&path).unwrap();
        std::fs::write(&path, "garbage").unwrap();
        write(&path).unwrap();
        let found: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(found["syscalls"][0]["errnoRet"], 38);
    }
}
