//! The driver against a real CRIU, in a node for tests. Outside of one, these tests do nothing but one:
//! `node_the_driver_works` starts a node and runs this very program in it.
#![forbid(unsafe_code)]

mod container;
mod driver;
mod failures;
mod hostile;

use std::env;
use std::path::Path;

use woodfrog_testnode::{Need, Node, Options};

/// Set where this program runs in a node.
const INSIDE: &str = "WOODFROG_CRIU_TESTS_INSIDE";

#[test]
fn node_the_driver_works() -> Result<(), Box<dyn std::error::Error>> {
    if env::var_os(INSIDE).is_some() || !Need::met() {
        return Ok(());
    }
    let options = Options::default();
    let program = env::current_exe()?;
    let program = Path::new("/opt/woodfrog").join(program.strip_prefix(options.binaries.canonicalize()?)?);
    let node = Node::up("criu-driver", &options)?.into_guard();
    let mut command = node.command(program.to_str().ok_or("the path is not UTF-8")?);
    // Many containers that start at once make a machine with few cores so slow that deadlines pass.
    let status = command.arg("--test-threads=1").env(INSIDE, "1").status()?;
    assert!(status.success(), "the tests in the node failed: {status}");
    Ok(())
}
