//! What all connections share.

use crate::Config;

/// The shim.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) config: Config,
}
