//! CRIU's log: which of its lines explain a failure.
//!
//! A line reads `(00.012345)    300: Error (criu/files.c:123): text`: time since the start (from level Info on), the
//! PID of the task that writes on a restore, the level unless it is Info, and where in CRIU's source it was written.

/// How many lines before the first error are kept.
const CONTEXT: usize = 5;
/// How many lines are kept in all.
const MOST: usize = 40;

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

fn is_error(line: &str) -> bool {
    // "rlimit: Can't setup RLIMIT_NOFILE" is an error only by name: CRIU goes on with the limit that it has.
    line.contains("Error (") && !line.contains("Can't setup RLIMIT_NOFILE")
}

/// A line without its time and place: what is left is for people.
pub(crate) fn text(line: &str) -> &str {
    let line = line.split_once("Error (").map_or(line, |(_, rest)| rest);
    line.split_once("): ").map_or(line, |(_, text)| text).trim()
}
