//! What was found against the rules, said so that someone can act on it.

use std::fmt;

use woodfrog_criu::images::Task;

/// One thing in a checkpoint that the running container would not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Whose it is: `process 301 (nginx)`, `file 0x1f`, `checkpoint`.
    pub who: String,
    /// The field, by CRIU's name: `cap_prm`, `seccomp_filter`, `name`.
    pub field: &'static str,
    /// What the image holds.
    pub value: String,
    /// What PID 1 of the running container has, or what the rule allows.
    pub allowed: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} is {}; allowed: {}; {}",
            self.who, self.field, self.value, self.allowed, self.advice
        )
    }
}

/// Collects violations; the same one in many threads of a process is told once.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    violations: Vec<Violation>,
}

impl Report {
    pub(super) fn add(&mut self, violation: Violation) {
        if !self.violations.contains(&violation) {
            self.violations.push(violation);
        }
    }

    pub(super) fn refuse(
        &mut self,
        who: &str,
        field: &'static str,
        value: impl fmt::Display,
        allowed: impl fmt::Display,
        advice: &'static str,
    ) {
        let (value, allowed) = (value.to_string(), allowed.to_string());
        self.add(Violation { who: who.into(), field, value, allowed, advice });
    }

    /// Adds all unless `ok`.
    pub(super) fn require(
        &mut self,
        ok: bool,
        who: &str,
        field: &'static str,
        value: impl fmt::Display,
        allowed: impl fmt::Display,
        advice: &'static str,
    ) {
        if !ok {
            self.refuse(who, field, value, allowed, advice);
        }
    }

    pub(super) fn into_result<T>(self, good: T) -> Result<T, Vec<Violation>> {
        if self.violations.is_empty() { Ok(good) } else { Err(self.violations) }
    }
}

/// How a process is called in violations.
pub(super) fn process(task: &Task) -> String {
    format!("process {} ({})", task.pid(), task.comm())
}

/// What to do about an image that no dump of ours makes.
pub(super) const TAMPERED: &str = "the image is not a dump of this kind of container; do not trust it";
