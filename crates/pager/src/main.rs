//! Gives a thawed application its memory while it runs already: one process a thaw, in the container's cgroups, so that it
//! depends on no agent.
//!
//! ```text
//!   Plan + page files (descriptors) ──► serve (loop) ──► memory (a process) ──► pending (which pages)
//!   CRIU ──userfaultfds────────────────►   │                  │
//!   init ◄──held descriptors, "complete"───┘                  └─► woodfrog_sys::userfault
//! ```

#![forbid(unsafe_code)]

mod memory;
mod pending;
mod serve;
mod wanted;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use prost::Message as _;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::CapabilitySets;
use woodfrog_protocol::pager::{Descriptor, Plan};
use woodfrog_sys::mapping::Mapping;

const HELP: &str = "woodfrog-pager: gives a thawed application its memory while it runs

Started by the node agent, without arguments, with a plan, CRIU's socket, a socket of the container's
init and the directory of the page files as descriptors 3 to 6. Ends when all memory is there.

  --help     this text
  --version  the release
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => match run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // The agent that would hear it may have gone.
                let _ = writeln!(std::io::stderr(), "{error}");
                ExitCode::FAILURE
            }
        },
        Some("--help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some("--version") => {
            println!("woodfrog-pager {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("woodfrog-pager: unknown argument {other:?}; it takes none but --help and --version");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    // It needs nothing but its descriptors.
    rustix::thread::set_no_new_privs(true)?;
    let nothing = rustix::thread::CapabilitySet::empty();
    let none = CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
    rustix::thread::set_capabilities(None, none)?;

    let given =
        |number: i32| woodfrog_sys::process::given(number).map_err(|e| format!("descriptor {number}: {e}"));
    let mut bytes = Vec::new();
    File::from(given(Descriptor::Plan as i32)?).read_to_end(&mut bytes)?;
    let plan = Plan::decode(&*bytes)?;
    let (criu, init) = (given(Descriptor::Criu as i32)?, given(Descriptor::Init as i32)?);
    let dir = given(Descriptor::Pages as i32)?;
    let mut pages = Vec::with_capacity(plan.processes.len());
    for process in &plan.processes {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&dir, &process.file, flags, Mode::empty(), resolve);
        let file = file.map_err(|e| format!("cannot open {}: {e}", process.file))?;
        pages.push(Mapping::new(file, usize::try_from(process.length)?)?);
    }
    let report = serve::Pager::new(plan, pages, criu, init).run()?;
    // The agent may have gone meanwhile; the application has its memory.
    let _ = std::io::stdout().write_all(&report.encode_to_vec());
    Ok(())
}
