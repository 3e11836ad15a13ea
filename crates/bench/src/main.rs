//! Demo and benchmarks on a test node and on a test API server: `woodfrog-bench --help`.
#![forbid(unsafe_code)]

mod after;
mod args;
mod client;
mod clock;
mod cluster;
mod contenders;
mod demo;
mod footprint;
mod freeze;
mod inside;
mod modes;
mod node;
mod operator;
mod pager;
mod plots;
mod progress;
mod proxy;
mod report;
mod samples;
mod shim;
mod start;
mod thaw;
mod wake;
mod workload;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command, Inside};
use crate::workload::apps;

fn main() -> ExitCode {
    run(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => node::with(&args.node, &args.apps(), |place| demo::run(place, &args)),
        Command::Thaw(args) => {
            node::with(&args.node, &apps(&args.workloads()), |place| thaw::run(place, &args))
        }
        Command::After(args) => {
            node::with(&args.node, &apps(&args.workloads()), |place| after::run(place, &args))
        }
        Command::Pager(args) => {
            node::with(&args.node, &apps(&args.workloads()), |place| pager::run(place, &args))
        }
        Command::Freeze(args) => {
            node::with(&args.node, &apps(&args.workloads()), |place| freeze::run(place, &args))
        }
        Command::Wake(args) => node::with(&args.node, &args.apps(), |place| wake::run(place, &args)),
        Command::Shim(args) => node::with(&args.node, shim::APPS, |place| shim::run(place, &args)),
        Command::Start(args) => node::with(&args.node, start::APPS, |place| start::run(place, &args)),
        Command::Cluster(args) => cluster::run(&args),
        Command::Operator(args) => operator::run(&args),
        Command::Inside(task) => {
            let done = match task {
                Inside::Dump { at, leave_running } => {
                    json(&inside::dump(at.init, &at.images, leave_running)?)
                }
                Inside::Restore { at, lazy } => json(&inside::restore(at.init, &at.images, lazy)?),
                Inside::Proxy { at, to } => json(&proxy::serve(at.init, &at.images, to)?),
                Inside::Footprint { agent, inits } => json(&footprint::look(&inits, agent)?),
                Inside::Read { init } => json(&inside::read(init)?),
                Inside::Run { command } => json(&inside::run(&command)?),
                Inside::Usage { init } => json(&inside::usage(init)?),
            };
            println!("{}", done?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value)
}
