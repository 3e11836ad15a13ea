//! `operator`: makes Checkpoints and keeps WarmPools.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use operator::args::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    woodfrog_telemetry::log::init(cli.log_json);
    match operator::run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
