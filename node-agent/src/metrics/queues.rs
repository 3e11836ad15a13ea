//! What the kernel says of the queues that hold packets: `/proc/net/netfilter/nfnetlink_queue` of a network namespace, whose lines
//! `seq_show` in `net/netfilter/nfnetlink_queue.c` writes.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A queue of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    /// Its number.
    pub(super) number: u16,
    /// Packets that it holds now.
    pub(super) held: u64,
    /// Packets that were dropped since it was opened, because it or its socket was full.
    pub(super) dropped: u64,
}

/// Name of the network namespace of a process, the same for all its processes.
pub(super) fn namespace(pid: i32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net"))
}

/// The queues in the network namespace of a process. None: the kernel has no queues, or the process has ended.
pub(super) fn of(pid: i32) -> Vec<Queue> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/netfilter/nfnetlink_queue")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// A line: number, port of its socket, packets held, copy mode, copy range, dropped by the queue, dropped by the socket, last ID, 1.
fn parse(line: &str) -> Option<Queue> {
    let fields: Vec<u64> = line.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [number, _, held, _, _, by_queue, by_socket, ..] = fields[..] else { return None };
    Some(Queue { number: number.try_into().ok()?, held, dropped: by_queue + by_socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "   17  31270     3 2   192     4     1       42  1";
        assert_eq!(parse(line), Some(Queue { number: 17, held: 3, dropped: 5 }));
        assert_eq!(parse(""), None);
        assert_eq!(parse("1 2 x 2 192 0 0 0 1"), None);
    }
}
