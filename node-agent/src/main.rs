//! `node-agent`: the agent of a node, and the CRI shim.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use node_agent::args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    woodfrog_telemetry::log::init(cli.log_json);
    match node_agent::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
