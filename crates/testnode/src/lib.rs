//! Nodes for tests, from Debian packages, in namespaces of their own.
//!
//! A node is what a cluster's node is to Woodfrog: containerd, runc, CRIU, CNI and a registry on its loopback, with a
//! PID 1 that reaps. It needs root and Debian 12 or later, and none of its parts need be installed on the machine.
//!
//! ```text
//!  /var/cache/woodfrog        layers, made once: Debian ◄─ node packages
//!        │                                            ◄─ application packages ◄─ application files
//!        ▼ overlay
//!  node "a"  ── PID, mount, network, UTS, IPC and control group namespaces, PID 1 = catatonit -P
//!    /run, /tmp, /dev          tmpfs          eth0 10.210.0.A/24 ─┐
//!    /var/lib/containerd       tmpfs or disk  pods 10.210.A.0/24  │
//!    /var/lib/registry         disk, one for all nodes            ├─ br0 of the hub, 10.210.0.254, which
//!    /opt/woodfrog             binaries under test, read-only     │  routes between the nodes' pods
//!  node "b" ...                               eth0 10.210.0.B/24 ─┘
//! ```
//!
//! Every node runs a registry at `127.0.0.1:5000` over *one* storage directory, which the registry's documentation allows. So
//! an image has the same reference everywhere, and what one node pushed every other can pull, in whatever order nodes come and go.
//!
//! Nothing of a node is visible in the host's mount table or network: its mounts, devices and processes live in its
//! namespaces and end with its PID 1. On the host there are its control groups (`woodfrog-testnode/NAME` in every
//! hierarchy, which is how its processes are found), `/run/woodfrog-testnode` and `/var/lib/woodfrog-testnode`, and
//! [`Node::down`] removes these by name, however far [`Node::up`] came.
//!
//! ```no_run
//! use woodfrog_testnode::{App, Node, Options};
//! # fn main() -> Result<(), woodfrog_testnode::Error> {
//! let node = Node::up("thaw", &Options { images: vec![App::Cpython], ..Options::default() })?.into_guard();
//! let version = node.command("runc").arg("--version").output().expect("runc runs");
//! node.start("agent", &["/opt/woodfrog/debug/node-agent", "run"])?;
//! println!("{:?} {}", node.containerd_socket(), node.logs("agent")?);
//! # Ok(()) } // the guard takes the node down
//! ```
#![forbid(unsafe_code)]

mod app;
mod cache;
mod cgroup;
mod config;
mod down;
mod error;
mod hub;
mod image;
mod layer;
mod mirror;
mod need;
mod node;
mod process;
mod progress;
mod registry;
mod state;
mod up;

pub use app::{App, fill_cache};
pub use error::Error;
pub use layer::cached;
pub use need::{HOST_PACKAGES, Need};
pub use node::{Guard, Node, Options, Status};
pub use process::pid_in_node;
pub use progress::step;
pub use state::names;
