//! Development tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod build;
mod node;
mod packages;
mod tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and shows Woodfrog. Installs the Debian packages that it needs and the machine lacks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start, look into and stop nodes for tests
    Node(node::Args),
    /// Run all tests
    Test(tests::TestArgs),
    /// Check formatting and run clippy
    Lint,
    /// Freeze and thaw four applications on a node, or with --cluster in a cluster, and show how long it takes
    #[command(disable_help_flag = true)]
    Demo(build::DemoArgs),
    /// Measure: operator, shim, start or thaw
    #[command(disable_help_flag = true)]
    Bench(build::BenchArgs),
    /// Write the resources' definitions in crds/ and docs/reference.md from the types in crates/api
    Generate,
    /// Build the binaries that nodes run, woodfrog-init and woodfrog-pager statically
    Build(build::BuildArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Node(args) => node::run(args),
        Task::Test(args) => tests::test(&args),
        Task::Lint => tests::lint(),
        Task::Demo(args) => build::demo(&args),
        Task::Bench(args) => build::bench(&args),
        Task::Generate => build::generate(),
        Task::Build(args) => build::build(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
