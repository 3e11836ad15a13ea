//! `cargo xtask test` and `cargo xtask lint`.

use std::process::ExitCode;

use anyhow::Result;
use woodfrog_testnode::{HOST_PACKAGES, Node, names};

use crate::{
    build::{binaries, cargo, run, static_binaries},
    packages,
};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                         everything; node tests are skipped where there is no root
  cargo xtask test -- node_                only the tests on nodes
  CI=true cargo xtask test                 fail, rather than skip, where a test lacks something")]
pub(crate) struct TestArgs {
    /// Passed on to `cargo test --workspace`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs all tests of the workspace, with everything built that they start.
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    packages::ensure(packages::BUILD)?;
    packages::ensure(HOST_PACKAGES)?;
    packages::ensure_python()?;
    static_binaries()?;
    binaries(&["node-agent", "operator", "woodfrog"], false)?;
    let before = names()?;
    let mut cargo = cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast", "--"]).args(&args.arguments);
    if std::env::var("CI").is_ok_and(|ci| ci == "true") && std::env::var_os("WOODFROG_REQUIRE").is_none() {
        cargo.env("WOODFROG_REQUIRE", "node,api,helm");
    }
    let result = run(&mut cargo);
    // A test that was killed could not take its node down.
    for name in names()?.into_iter().filter(|name| !before.contains(name)) {
        eprintln!("a test left node {name} behind");
        Node::down(&name)?;
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// `cargo fmt --check` and clippy without warnings.
pub(crate) fn lint() -> Result<ExitCode> {
    packages::ensure(packages::BUILD)?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    Ok(ExitCode::SUCCESS)
}
