//! Finding out what this node is, for [`Compatibility`].

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::compatibility::Compatibility;

/// Why a node could not be described.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path} to find out what this node is")]
pub struct NodeError {
    path: &'static str,
    source: io::Error,
}

/// x86 instructions that programs look for, as `/proc/cpuinfo` names them. Its other flags describe the kernel, bugs
/// and power management, and differ between nodes on which everything runs.
const X86_FEATURES: &[&str] = &[
    "3dnow",
    "3dnowext",
    "3dnowprefetch",
    "abm",
    "adx",
    "aes",
    "bmi1",
    "bmi2",
    "clflush",
    "clflushopt",
    "cldemote",
    "clwb",
    "clzero",
    "cmov",
    "cx16",
    "cx8",
    "enqcmd",
    "erms",
    "f16c",
    "fma",
    "fma4",
    "fpu",
    "fsgsbase",
    "fsrc",
    "fsrm",
    "fsrs",
    "fxsr",
    "fzrm",
    "gfni",
    "hle",
    "lahf_lm",
    "misalignsse",
    "mmx",
    "mmxext",
    "movbe",
    "movdir64b",
    "movdiri",
    "mwaitx",
    "nopl",
    "ospke",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "rdpid",
    "rdpru",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rep_good",
    "rtm",
    "serialize",
    "sha_ni",
    "sse",
    "sse2",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "syscall",
    "tbm",
    "tsc",
    "user_shstk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "wbnoinvd",
    "xgetbv1",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
    "xsaves",
];

/// Families of x86 instructions that grow with each generation of CPUs.
const X86_FAMILIES: &[&str] = &["amx_", "avx"];

impl Compatibility {
    /// Describes the node that this runs on, with the version of the CRIU that is used here.
    pub fn of_this_node(criu: &str) -> Result<Self, NodeError> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let uname = rustix::system::uname();
        let (cpu_vendor, cpu_features) = cpu(&cpuinfo);
        Ok(Self {
            architecture: uname.machine().to_string_lossy().into_owned(),
            cpu_vendor,
            cpu_features,
            xsave_bytes: xsave_bytes(),
            kernel: uname.release().to_string_lossy().into_owned(),
            criu: criu.to_owned(),
            page_bytes: rustix::param::page_size() as u64,
            cgroup_version: cgroup_version(Path::new("/sys/fs/cgroup")),
        })
    }
}

fn read(path: &'static str) -> Result<String, NodeError> {
    fs::read_to_string(path).map_err(|source| NodeError { path, source })
}

/// Vendor and features of the first CPU. The kernel runs processes on every CPU and so offers what all have.
fn cpu(cpuinfo: &str) -> (String, BTreeSet<String>) {
    let value = |keys: [&str; 2]| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| keys.contains(&key.trim()))
            .map_or("", |(_, value)| value.trim())
    };
    let vendor = value(["vendor_id", "CPU implementer"]).to_owned();
    let flags = value(["flags", "Features"]).split_whitespace();
    // On ARM the line lists hardware capabilities alone.
    let x86 = cpuinfo.lines().any(|line| line.starts_with("vendor_id"));
    let features = flags
        .filter(|flag| {
            !x86 || X86_FEATURES.contains(flag) || X86_FAMILIES.iter().any(|family| flag.starts_with(family))
        })
        .map(str::to_owned)
        .collect();
    (vendor, features)
}

/// Size of the XSAVE area for the features that the kernel enabled (Intel SDM, CPUID leaf 0dh, EBX of subleaf 0).
#[cfg(target_arch = "x86_64")]
fn xsave_bytes() -> u32 {
    let cpuid = raw_cpuid::CpuId::new();
    cpuid.get_extended_state_info().map_or(0, |state| state.xsave_area_size_enabled_features())
}

#[cfg(not(target_arch = "x86_64"))]
fn xsave_bytes() -> u32 {
    0
}

/// Only the unified hierarchy has `cgroup.controllers` at its root (cgroups(7)).
fn cgroup_version(mount: &Path) -> u8 {
    if mount.join("cgroup.controllers").exists() { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_node_is_compatible_with_itself() {
        let node = Compatibility::of_this_node("4.2.1").unwrap();
        assert_eq!(node.compatible(&node), Ok(()));
        assert!(!node.cpu_features.is_empty(), "{node:?}");
        assert!(node.page_bytes >= 4096);
    }

    #[test]
    fn flags_that_programs_cannot_use_do_not_count() {
        let cpuinfo =
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16 hypervisor ibrs sse2\n";
        let (vendor, features) = cpu(cpuinfo);
        assert_eq!(vendor, "AuthenticAMD");
        assert_eq!(features.into_iter().collect::<Vec<_>>(), ["avx512_bf16", "fpu", "sse2"]);
    }

    #[test]
    fn arm_lists_its_features_under_another_name() {
        let cpuinfo = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\n";
        let (vendor, features) = cpu(cpuinfo);
        assert_eq!(vendor, "0x41");
        assert_eq!(features.len(), 3);
    }
}
