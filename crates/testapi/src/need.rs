//! Whether there is an API server for tests.

use crate::origin::{Origin, required};

/// Whether `api_*` tests can run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// All is there.
    Met,
    /// What lacks; the test must be skipped with this message.
    Lacks(String),
}

impl Need {
    /// Looks at this machine and its environment.
    ///
    /// # Panics
    /// Something lacks and `WOODFROG_REQUIRE` (a list with commas, as CI sets it) names `api`, so that a test fails rather than
    /// being skipped.
    #[must_use]
    pub fn look() -> Self {
        let Some(what) = Origin::choose().lacks() else { return Self::Met };
        assert!(!required(), "WOODFROG_REQUIRE=api: {what}");
        Self::Lacks(what)
    }

    /// True where an `api_*` test can go on; else the reason is printed and the test should return.
    #[must_use]
    pub fn met() -> bool {
        match Self::look() {
            Self::Met => true,
            Self::Lacks(what) => {
                eprintln!("skipped: {what}");
                false
            }
        }
    }
}
