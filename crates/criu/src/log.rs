//! CRIU's log: which of its lines explain a failure.
//!
//! A line reads `(00.012345)    300: Error (criu/files.c:123): text`: time since the start (from level Info on), the
//! PID of the task that writes on a restore, the level unless it is Info, and where in CRIU's source it was written.

/// How many lines before the first error are kept.
const CONTEXT: usize = 5;
/// How many lines are kept in all.
const MOST: usize = 40;

/// Error lines that say nothing: CRIU goes on with the limit that it has, and the rest only tells that it failed.
const EMPTY: [&str; 3] = ["Can't setup RLIMIT_NOFILE", "Dumping FAILED.", "Restoring FAILED."];

/// An error line, taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    /// What is for people.
    pub(crate) text: &'a str,
}

impl<'a> Line<'a> {
    /// Takes off the time and the place in CRIU's source.
    pub(crate) fn parse(line: &'a str) -> Self {
        let text =
            line.split_once("Error (").and_then(|(_, rest)| rest.split_once("): ")).map_or(line, |(_, t)| t);
        Self { text: text.trim() }
    }
}

/// The error lines, and those just before the first of them. `message` is CRIU's own first error, which is all there is
/// if no log was written.
pub(crate) fn explaining(message: Option<&str>, log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let Some(first) = lines.iter().position(|line| is_error(line)) else {
        return message.into_iter().map(|message| message.trim_end().to_owned()).collect();
    };
    let before = lines[first.saturating_sub(CONTEXT)..first].iter();
    let errors = lines[first..].iter().filter(|line| is_error(line));
    before.chain(errors).take(MOST).map(|line| (*line).to_owned()).collect()
}

/// Whether a line tells of an error that matters.
pub(crate) fn is_error(line: &str) -> bool {
    line.contains("Error (") && !EMPTY.iter().any(|text| line.contains(text))
}
