//! Debian packages of the host: those that lack are installed, by name, once.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What Cargo's builds need: protoc for the CRI's and containerd's messages, a linker.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev", "protobuf-compiler"];

/// Installs those of `packages` that dpkg does not know as installed.
pub(crate) fn ensure(packages: &[&str]) -> Result<()> {
    let lacking: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    woodfrog_testnode::step(&format!("install {}", lacking.join(", ")), || {
        if install(&lacking).is_ok() {
            return Ok(());
        }
        // apt knows too little or too old a list of packages.
        apt(&["update"])?;
        install(&lacking)
    })
}

/// Sees to a Python that can make environments, for Helm's library. Some machines have one that is not Debian's.
pub(crate) fn ensure_python() -> Result<()> {
    let found = Command::new("python3").args(["-c", "import ensurepip"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    ensure(&["python3", "python3-venv"])
}

fn installed(package: &str) -> bool {
    let status =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

fn install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .arg("--quiet=2")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("cannot run apt-get: Woodfrog's tasks need Debian 12 or later")?;
    if !output.status.success() {
        bail!(
            "apt-get {} failed (it needs root):\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
