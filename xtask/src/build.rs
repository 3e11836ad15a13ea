//! Building what nodes run, the demo and benchmarks.

use std::{
    ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command, process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use crate::packages;

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub(crate) struct BuildArgs {
    /// Optimised, as for measuring
    #[arg(long)]
    release: bool,
}

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Passed on to `woodfrog-bench demo`; after `--cluster`, to `woodfrog-bench cluster`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Passed on to `woodfrog-bench`: the benchmark's name and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The workspace.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Packages of this workspace whose binaries nodes run, besides the static ones.
const BINARIES: &[&str] = &["node-agent", "woodfrog"];

/// `cargo xtask build`.
pub(crate) fn build(args: &BuildArgs) -> Result<ExitCode> {
    packages::ensure(packages::BUILD)?;
    static_binaries()?;
    binaries(BINARIES, args.release)?;
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask generate`: what is generated from the API types, and the chart's copy of it.
pub(crate) fn generate() -> Result<ExitCode> {
    packages::ensure(packages::BUILD)?;
    run(cargo().args(["run", "--quiet", "--package", "woodfrog-api", "--example", "generate"]))?;
    // The chart installs them; helm follows no links out of a chart.
    for entry in std::fs::read_dir(ROOT.to_owned() + "/crds")? {
        let path = entry?.path();
        let copy = PathBuf::from(ROOT.to_owned() + "/charts/woodfrog/crds")
            .join(path.file_name().unwrap_or_default());
        std::fs::copy(&path, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask demo`: builds all and becomes the demo.
pub(crate) fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let (cluster, rest): (Vec<_>, Vec<_>) =
        args.arguments.iter().cloned().partition(|argument| argument == "--cluster");
    let name = if cluster.is_empty() { "demo" } else { "cluster" };
    measure(&[&[name.into()], rest.as_slice()].concat())
}

/// `cargo xtask bench`: builds what is measured and becomes the benchmark.
pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    measure(&args.arguments)
}

/// Builds, optimised, what `woodfrog-bench` with these arguments runs, and becomes it.
fn measure(arguments: &[OsString]) -> Result<ExitCode> {
    let name = arguments.first().and_then(|name| name.to_str()).unwrap_or_default();
    packages::ensure(packages::BUILD)?;
    packages::ensure(woodfrog_testnode::HOST_PACKAGES)?;
    if name != "operator" {
        static_binaries()?;
        binaries(BINARIES, true)?;
    }
    if ["operator", "cluster"].contains(&name) {
        binaries(&["operator"], true)?;
    }
    binaries(&["woodfrog-bench"], true)?;
    let program = target().join("release/woodfrog-bench");
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Builds woodfrog-init and woodfrog-pager as `target/static/TRIPLE/init/NAME`: static, since the one runs in containers that have no
/// libc or another, and the other has to start fast. They have a target directory of their own, so that their flags do not make
/// Cargo build everything else again.
pub(crate) fn static_binaries() -> Result<()> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = cargo();
    cargo.arg("build").args(["--package", "woodfrog-init", "--package", "woodfrog-pager"]);
    cargo.args(["--profile", "init", "--target", &triple, "--target-dir"]).arg(target().join("static"));
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(&mut cargo)
}

/// Builds packages of the workspace.
pub(crate) fn binaries(packages: &[&str], release: bool) -> Result<()> {
    let mut cargo = cargo();
    cargo.arg("build").args(packages.iter().flat_map(|package| ["--package", package]));
    if release {
        cargo.arg("--release");
    }
    run(&mut cargo)
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(ROOT);
    cargo
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn target() -> PathBuf {
    woodfrog_testnode::Options::default().binaries
}
