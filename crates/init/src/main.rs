//! PID 1 of a managed container: starts the application or lets the node agent thaw it, forwards signals, reaps,
//! and exits with the application's status.
//!
//! ```text
//!   command.bin ──► command ──┐
//!   agent.sock  ◄─► link ─────┼─► container (poll loop) ◄─► machine (what to do, no IO)
//!   api.sock    ◄─► api ──────┤            │
//!   pager       ──► memory ───┘            └─► woodfrog_sys::pid1 (signals, reap, start)
//! ```

#![forbid(unsafe_code)]

mod api;
mod command;
mod container;
mod http;
mod link;
mod machine;
mod memory;

use std::process::ExitCode;

const HELP: &str = "woodfrog-init: PID 1 of a managed container

Started by the container runtime, without arguments, in place of the image's command, which it reads
from /run/woodfrog/command.bin. Exits with the application's status, 128+n after signal n; 127 or 126
if the command cannot be found or run; 137 if a failed thaw left something that cannot be killed.

  --help     this text
  --version  the release
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => ExitCode::from(container::run()),
        Some("--help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some("--version") => {
            println!("woodfrog-init {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("woodfrog-init: unknown argument {other:?}; it takes none but --help and --version");
            ExitCode::from(125)
        }
    }
}
