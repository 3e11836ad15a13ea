//! Processes and threads: `pstree.img`, `core-TID.img`, `ids-PID.img`, `fs-PID.img`.

/// `pstree.img`, one entry a process, parents first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pstree {
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    #[prost(uint32, required, tag = "2")]
    pub ppid: u32,
    #[prost(uint32, required, tag = "3")]
    pub pgid: u32,
    #[prost(uint32, required, tag = "4")]
    pub sid: u32,
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// Kernel objects that a task shares with others, by CRIU's own numbers; equal numbers are one object.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KobjIds {
    #[prost(uint32, required, tag = "1")]
    pub vm_id: u32,
    #[prost(uint32, required, tag = "2")]
    pub files_id: u32,
    #[prost(uint32, required, tag = "3")]
    pub fs_id: u32,
    #[prost(uint32, required, tag = "4")]
    pub sighand_id: u32,
    #[prost(uint32, optional, tag = "5")]
    pub pid_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub net_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub ipc_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub uts_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub mnt_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    pub user_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    pub cgroup_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    pub time_ns_id: Option<u32>,
}

/// `core-TID.img`: a thread; the leader's also holds what belongs to the process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Core {
    /// Machine type; 1 is x86-64, 3 is AArch64.
    #[prost(int32, required, tag = "1")]
    pub mtype: i32,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub thread_info: Option<Vec<u8>>,
    #[prost(message, optional, boxed, tag = "3")]
    pub tc: Option<Box<TaskCore>>,
    #[prost(message, optional, boxed, tag = "4")]
    pub ids: Option<Box<KobjIds>>,
    #[prost(message, optional, boxed, tag = "5")]
    pub thread_core: Option<Box<ThreadCore>>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub ti_aarch64: Option<Vec<u8>>,
}

/// What belongs to the whole process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskCore {
    #[prost(uint32, required, tag = "1")]
    pub task_state: u32,
    #[prost(uint32, required, tag = "2")]
    pub exit_code: u32,
    #[prost(uint32, required, tag = "3")]
    pub personality: u32,
    #[prost(uint32, required, tag = "4")]
    pub flags: u32,
    #[prost(uint64, required, tag = "5")]
    pub blk_sigset: u64,
    #[prost(string, required, tag = "6")]
    pub comm: String,
    #[prost(message, optional, tag = "7")]
    pub timers: Option<Timers>,
    #[prost(message, optional, tag = "8")]
    pub rlimits: Option<Rlimits>,
    #[prost(uint32, optional, tag = "9")]
    pub cg_set: Option<u32>,
    #[prost(message, optional, tag = "10")]
    pub signals_s: Option<SignalQueue>,
    #[prost(int32, optional, tag = "11")]
    pub old_seccomp_mode: Option<i32>,
    #[prost(uint32, optional, tag = "12")]
    pub old_seccomp_filter: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub loginuid: Option<u32>,
    #[prost(int32, optional, tag = "14")]
    pub oom_score_adj: Option<i32>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    pub sigactions: Vec<Vec<u8>>,
    #[prost(bool, optional, tag = "18")]
    pub child_subreaper: Option<bool>,
    #[prost(uint64, optional, tag = "20")]
    pub blk_sigset_extended: Option<u64>,
    #[prost(uint32, optional, tag = "21")]
    pub stop_signo: Option<u32>,
    #[prost(uint32, optional, tag = "22")]
    pub membarrier_registration_mask: Option<u32>,
}

/// What belongs to one thread.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThreadCore {
    #[prost(uint64, required, tag = "1")]
    pub futex_rla: u64,
    #[prost(uint32, required, tag = "2")]
    pub futex_rla_len: u32,
    #[prost(sint32, optional, tag = "3")]
    pub sched_nice: Option<i32>,
    #[prost(uint32, optional, tag = "4")]
    pub sched_policy: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub sched_prio: Option<u32>,
    #[prost(uint64, optional, tag = "6")]
    pub blk_sigset: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "7")]
    pub sas: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "8")]
    pub pdeath_sig: Option<u32>,
    #[prost(message, optional, tag = "9")]
    pub signals_p: Option<SignalQueue>,
    #[prost(message, optional, tag = "10")]
    pub creds: Option<Creds>,
    #[prost(int32, optional, tag = "11")]
    pub seccomp_mode: Option<i32>,
    #[prost(uint32, optional, tag = "12")]
    pub seccomp_filter: Option<u32>,
    #[prost(string, optional, tag = "13")]
    pub comm: Option<String>,
    #[prost(uint64, optional, tag = "14")]
    pub blk_sigset_extended: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "15")]
    pub rseq_entry: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "16")]
    pub cg_set: Option<u32>,
}

/// Credentials of a thread; capability sets are pairs of 32-bit words, low word first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Creds {
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    #[prost(uint32, required, tag = "2")]
    pub gid: u32,
    #[prost(uint32, required, tag = "3")]
    pub euid: u32,
    #[prost(uint32, required, tag = "4")]
    pub egid: u32,
    #[prost(uint32, required, tag = "5")]
    pub suid: u32,
    #[prost(uint32, required, tag = "6")]
    pub sgid: u32,
    #[prost(uint32, required, tag = "7")]
    pub fsuid: u32,
    #[prost(uint32, required, tag = "8")]
    pub fsgid: u32,
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    pub cap_inh: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    pub cap_prm: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub cap_eff: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub cap_bnd: Vec<u32>,
    #[prost(uint32, required, tag = "13")]
    pub secbits: u32,
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    pub groups: Vec<u32>,
    #[prost(string, optional, tag = "15")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "16")]
    pub lsm_sockcreate: Option<String>,
    #[prost(bytes = "vec", optional, tag = "17")]
    pub apparmor_data: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "18")]
    pub no_new_privs: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "19")]
    pub cap_amb: Vec<u32>,
}

/// Resource limits by number (`RLIMIT_CPU` first); all ones is unlimited.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rlimits {
    #[prost(message, repeated, tag = "1")]
    pub rlimits: Vec<Rlimit>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Rlimit {
    #[prost(uint64, required, tag = "1")]
    pub cur: u64,
    #[prost(uint64, required, tag = "2")]
    pub max: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalQueue {
    #[prost(message, repeated, tag = "1")]
    pub signals: Vec<Siginfo>,
}

/// A queued signal: the kernel's `siginfo_t`, 128 bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Siginfo {
    #[prost(bytes = "vec", required, tag = "1")]
    pub siginfo: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Timers {
    #[prost(bytes = "vec", required, tag = "1")]
    pub real: Vec<u8>,
    #[prost(bytes = "vec", required, tag = "2")]
    pub virt: Vec<u8>,
    #[prost(bytes = "vec", required, tag = "3")]
    pub prof: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    pub posix: Vec<PosixTimer>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PosixTimer {
    #[prost(uint32, required, tag = "1")]
    pub it_id: u32,
    #[prost(uint32, required, tag = "2")]
    pub clock_id: u32,
    #[prost(uint32, required, tag = "3")]
    pub si_signo: u32,
    #[prost(uint32, required, tag = "4")]
    pub it_sigev_notify: u32,
    #[prost(uint64, required, tag = "5")]
    pub sival_ptr: u64,
    #[prost(uint32, required, tag = "6")]
    pub overrun: u32,
    #[prost(uint64, required, tag = "7")]
    pub isec: u64,
    #[prost(uint64, required, tag = "8")]
    pub insec: u64,
    #[prost(uint64, required, tag = "9")]
    pub vsec: u64,
    #[prost(uint64, required, tag = "10")]
    pub vnsec: u64,
    #[prost(int32, optional, tag = "11")]
    pub notify_thread_id: Option<i32>,
}

/// `fs-PID.img`: working directory and root, as ids of regular files.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Fs {
    #[prost(uint32, required, tag = "1")]
    pub cwd_id: u32,
    #[prost(uint32, required, tag = "2")]
    pub root_id: u32,
    #[prost(uint32, optional, tag = "3")]
    pub umask: Option<u32>,
}
