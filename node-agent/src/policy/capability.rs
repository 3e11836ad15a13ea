//! Sets of Linux capabilities (`linux/capability.h`).

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// A set of capabilities, bit n for capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(pub u64);

/// Names by number.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

#[allow(missing_docs)]
impl CapSet {
    pub const DAC_OVERRIDE: Self = Self(1 << 1);
    pub const DAC_READ_SEARCH: Self = Self(1 << 2);
    pub const FOWNER: Self = Self(1 << 3);
    pub const SETGID: Self = Self(1 << 6);
    pub const SETUID: Self = Self(1 << 7);
    pub const SETPCAP: Self = Self(1 << 8);
    pub const NET_BIND_SERVICE: Self = Self(1 << 10);
    pub const NET_ADMIN: Self = Self(1 << 12);
    pub const NET_RAW: Self = Self(1 << 13);
    pub const IPC_LOCK: Self = Self(1 << 14);
    pub const SYS_CHROOT: Self = Self(1 << 18);
    pub const SYS_NICE: Self = Self(1 << 23);
    pub const WAKE_ALARM: Self = Self(1 << 35);

    /// From CRIU's pair of words; none for another number of them.
    pub fn from_words(words: &[u32]) -> Option<Self> {
        match words {
            [low, high] => Some(Self(u64::from(*low) | u64::from(*high) << 32)),
            _ => None,
        }
    }

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in this set and not in the other.
    pub fn beyond(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for CapSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for CapSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = (0..64)
            .filter(|bit| self.0 >> bit & 1 == 1)
            .map(|bit| NAMES.get(bit).map_or_else(|| format!("cap_{bit}"), |name| format!("cap_{name}")))
            .collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(" "))
    }
}
