//! What a checkpoint needs of the container, told by the static part and judged against PID 1.

use super::capability::CapSet;
use super::target::Target;
use super::violation::Report;

/// Something in the image that is allowed only if PID 1 is entitled to it.
#[derive(Clone, Debug)]
pub(super) struct Requirement {
    pub who: String,
    pub field: &'static str,
    pub value: String,
    pub need: Need,
}

/// What PID 1 must have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// A permitted capability.
    Capability(CapSet),
    /// This user id, or the right to change to any.
    Uid(u32),
    /// This group id, or the right to change to any.
    Gid(u32),
    /// Room for this descriptor number below the hard limit.
    Descriptor(u32),
    /// That many bytes of locked memory.
    Locked(u64),
    /// This nice value.
    Nice(i32),
    /// A port below 1024, where the network namespace asks for a privilege.
    Port(u16),
    /// Connections may be kept.
    Connections,
}

const RLIMIT_NOFILE: usize = 7;
const RLIMIT_MEMLOCK: usize = 8;

impl Requirement {
    pub(super) fn judge(&self, target: &Target, report: &mut Report) {
        let mut refuse =
            |allowed: String, advice| report.refuse(&self.who, self.field, &self.value, allowed, advice);
        match self.need {
            Need::Capability(needed) => {
                if !target.permitted.has(needed) {
                    let advice =
                        "give the container the capability in its securityContext, or freeze it without this";
                    refuse(format!("only with {needed}; PID 1 has {}", target.permitted), advice);
                }
            }
            Need::Uid(uid) => {
                if !target.may_be_uid(uid) {
                    refuse(format!("PID 1's user ids {:?}", target.uids), SAME_USER);
                }
            }
            Need::Gid(gid) => {
                if !target.may_be_gid(gid) {
                    refuse(format!("PID 1's group ids {:?} and {:?}", target.gids, target.groups), SAME_USER);
                }
            }
            Need::Descriptor(fd) => {
                let max = target.limits[RLIMIT_NOFILE].max;
                if u64::from(fd) >= max {
                    refuse(
                        format!("below PID 1's limit of {max}"),
                        "raise the container's limit of open files",
                    );
                }
            }
            Need::Locked(bytes) => {
                let max = target.limits[RLIMIT_MEMLOCK].max;
                if bytes > max && !target.permitted.has(CapSet::IPC_LOCK) {
                    refuse(format!("PID 1's limit of {max}"), "raise the container's limit of locked memory");
                }
            }
            Need::Nice(nice) => {
                if nice < target.nice && !target.permitted.has(CapSet::SYS_NICE) {
                    refuse(
                        format!("PID 1's {} or above", target.nice),
                        "freeze the process at a lower priority",
                    );
                }
            }
            Need::Port(port) => {
                if !target.permitted.has(CapSet::NET_BIND_SERVICE) && target.first_free_port() > port {
                    let allowed =
                        format!("ports from {} on, or cap_net_bind_service", target.first_free_port());
                    refuse(allowed, "give the container NET_BIND_SERVICE, or listen on a higher port");
                }
            }
            Need::Connections => {
                if !target.connections {
                    let advice = "freeze with connections closed, or thaw into a pod that keeps its address";
                    refuse("no connection, since the address is another one".into(), advice);
                }
            }
        }
    }
}

/// What to do about foreign ids.
pub(super) const SAME_USER: &str =
    "thaw with the runAsUser, runAsGroup and groups of the pod that was frozen";

impl Target {
    pub(super) fn may_be_uid(&self, uid: u32) -> bool {
        self.uids.contains(&uid) || self.permitted.has(CapSet::SETUID)
    }

    pub(super) fn may_be_gid(&self, gid: u32) -> bool {
        self.gids.contains(&gid) || self.groups.contains(&gid) || self.permitted.has(CapSet::SETGID)
    }
}
