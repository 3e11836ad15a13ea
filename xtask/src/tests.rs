//! `cargo xtask test` and `cargo xtask lint`.

use std::{path::Path, process::ExitCode, thread};

use anyhow::{Context as _, Result};
use woodfrog_testnode::{HOST_PACKAGES, Need, Node, cached, names};

use crate::{
    build::{ROOT, binaries, cargo, run, static_binaries},
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
    let cache = thread::spawn(fill_cache);
    static_binaries()?;
    binaries(&["node-agent", "operator", "woodfrog"], false)?;
    let before = names()?;
    let mut cargo = cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast", "--"]).args(&args.arguments);
    if std::env::var("CI").is_ok_and(|ci| ci == "true") && std::env::var_os("WOODFROG_REQUIRE").is_none() {
        cargo.env("WOODFROG_REQUIRE", "node,api,helm");
    }
    let result = run(&mut cargo);
    // The tests that lack something have said so.
    if let Ok(Err(e)) = cache.join() {
        eprintln!("cannot build in advance what tests run on: {e:#}");
    }
    // A test that was killed could not take its node down.
    for name in names()?.into_iter().filter(|name| !before.contains(name)) {
        eprintln!("a test left node {name} behind");
        Node::down(&name)?;
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Builds what tests run on, as far as the cache lacks it: the API server and the nodes. They are mostly downloads, and Cargo's work goes on
/// beside them; a test that comes first waits for them.
fn fill_cache() -> Result<()> {
    if let Need::Lacks(_) = Need::look() {
        return Ok(());
    }
    let api = Path::new(ROOT).join("crates/testapi");
    let script = api.join("scripts/build.sh");
    let script =
        std::fs::read_to_string(&script).with_context(|| format!("cannot read {}", script.display()))?;
    cached("build the test API server", &script, &api.join("apiserver"))?;
    woodfrog_testnode::fill_cache()?;
    Ok(())
}

/// `cargo fmt --check` and clippy without warnings.
pub(crate) fn lint() -> Result<ExitCode> {
    packages::ensure(packages::BUILD)?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    Ok(ExitCode::SUCCESS)
}
