//! Gives a thawed application its memory while it runs already: one process a thaw, in the container's cgroups, so that it
//! depends on no agent.
//!
//! ```text
//!   Plan + page files (descriptors) ──► serve (loop) ──► memory (a process) ──► pending (which pages)
//!   CRIU ──userfaultfds────────────────►   │                  │
//!   init ◄──held descriptors, "complete"───┘                  └─► woodfrog_sys::userfault
//! ```

#![forbid(unsafe_code)]

mod answers;
mod fill;
mod memory;
mod pending;
mod serve;
mod standing;
mod wanted;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use prost::Message as _;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::CapabilitySets;
use woodfrog_protocol::pager::{Descriptor, Plan, Process};
use woodfrog_sys::mapping::Mapping;

use serve::{Ends, Pager, Sharing};

type Error = Box<dyn std::error::Error>;

const HELP: &str = "woodfrog-pager: gives a thawed application its memory while it runs

Started by the node agent, with all that it needs as descriptors from 3 on. Without arguments it serves
an application, and ends when all memory is there, or with the application if memory is shared.
With the argument fill it puts the memory of an image into the node's page store, with fill-ahead
it does so when nobody waits for it.

  --help     this text
  --version  the release
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => ended(serve()),
        Some("fill") => ended(fill_store()),
        Some("fill-ahead") => {
            // Nobody waits. If it cannot be slower, it is as fast as the other.
            let _ = rustix::process::nice(10);
            ended(fill_store())
        }
        Some("--help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some("--version") => {
            println!("woodfrog-pager {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!(
                "woodfrog-pager: unknown argument {other:?}; it takes none but fill, fill-ahead, --help and --version"
            );
            ExitCode::from(2)
        }
    }
}

fn ended(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent that would hear it may have gone.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn given(number: i32) -> Result<OwnedFd, Error> {
    Ok(woodfrog_sys::process::given(number).map_err(|e| format!("descriptor {number}: {e}"))?)
}

fn serve() -> Result<(), Error> {
    // It needs nothing but its descriptors.
    rustix::thread::set_no_new_privs(true)?;
    let nothing = rustix::thread::CapabilitySet::empty();
    let none = CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
    rustix::thread::set_capabilities(None, none)?;

    let mut bytes = Vec::new();
    File::from(given(Descriptor::Plan as i32)?).read_to_end(&mut bytes)?;
    let plan = Plan::decode(&*bytes)?;
    let (criu, init) = (given(Descriptor::Criu as i32)?, given(Descriptor::Init as i32)?);
    let dir = given(Descriptor::Pages as i32)?;
    let pages = plan.processes.iter().map(|process| open_pages(dir.as_fd(), process));
    let pages = pages.collect::<Result<Vec<_>, _>>()?;
    let sharing = if plan.shares() {
        Some(Sharing {
            agent: given(Descriptor::Agent as i32)?,
            hears: true,
            standing: given(Descriptor::Standing as i32)?,
            shares: false,
        })
    } else {
        None
    };
    let counters = given(Descriptor::Counters as i32)?;
    Pager::new(plan, pages, Ends { criu, init, counters, sharing }).run()?;
    Ok(())
}

fn fill_store() -> Result<(), Error> {
    fill::fill(given(3)?, given(4)?, given(5)?)
}

/// A process's page file, mapped.
fn open_pages(dir: BorrowedFd<'_>, process: &Process) -> Result<Mapping, Error> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(dir, &process.file, flags, Mode::empty(), resolve);
    let file = file.map_err(|e| format!("cannot open {}: {e}", process.file))?;
    Ok(Mapping::new(file, usize::try_from(process.length)?)?)
}
