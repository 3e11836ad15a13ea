//! `woodfrog`: what happens to the managed containers of this node, and the word to freeze one.
//!
//! ```text
//!   args ──► ps, freeze, check, logs, wake ──► client ──agent.sock──► node-agent
//!        ├─► node ──► woodfrog-installer ──► systemd, kubelet's configuration
//!        └─► inspect ──► woodfrog-image (registry), woodfrog-criu (image files)
//!                   all ──► output (tables, JSON)
//! ```

#![forbid(unsafe_code)]

mod args;
mod check;
mod client;
mod failure;
mod freeze;
mod inspect;
mod logs;
mod node;
mod output;
mod progress;
mod ps;
mod wake;

use std::process::ExitCode;

use clap::Parser;

use args::{Action, Args};

fn main() -> ExitCode {
    let args = Args::parse();
    let (socket, format) = (&args.agent_socket, args.output);
    let done = match args.action {
        Action::Ps { pages: false } => ps::run(socket, format),
        Action::Ps { pages: true } => ps::pages(socket, format),
        Action::Freeze(freeze) => freeze::run(socket, format, freeze),
        Action::Check(check) => check::run(socket, format, check),
        Action::Inspect(inspect) => inspect::run(format, inspect),
        Action::Logs { container } => logs::run(socket, format, container),
        Action::Wake { container: Some(container), .. } => wake::run(socket, format, container),
        Action::Wake { sleep_again: true, .. } => wake::sleep_again(socket),
        Action::Wake { for_good, .. } => wake::all(socket, format, for_good),
        Action::Node(node) => node::run(format, node),
    };
    done.unwrap_or_else(|failure| failure.report())
}
