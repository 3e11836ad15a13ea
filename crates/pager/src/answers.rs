//! Whether anybody has been answered yet: what is wanted until then is what a first response waits for.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How often it is looked, at most.
const PAUSE: Duration = Duration::from_millis(1);
/// The most that is read: a few hundred counters.
const MAX_BYTES: usize = 32 << 10;
/// TCP segments with data that was not sent before (`net/ipv4/proc.c`).
const COUNTER: &str = "TCPOrigDataSent";

/// What the pod has sent.
pub(crate) struct Answers {
    counters: OwnedFd,
    /// How much at the beginning; none if the kernel does not count.
    before: Option<u64>,
    looked: Instant,
}

impl Answers {
    /// What is sent from now on, by these counters (`net/netstat`).
    pub(crate) fn begin(counters: OwnedFd) -> Self {
        let before = read(&counters);
        Self { counters, before, looked: Instant::now() }
    }

    /// Whether anything has been sent, as far as has been looked.
    pub(crate) fn seen(&mut self) -> bool {
        if self.before.is_none() || self.looked.elapsed() < PAUSE {
            return false;
        }
        self.looked = Instant::now();
        read(&self.counters) > self.before
    }
}

fn read(counters: &OwnedFd) -> Option<u64> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut length = 0;
    loop {
        match rustix::io::pread(counters, &mut bytes[length..], length as u64) {
            Ok(0) | Err(_) => break,
            Ok(more) => length += more,
        }
    }
    sent(std::str::from_utf8(&bytes[..length]).ok()?)
}

/// Lines of names, each followed by one of values.
fn sent(counters: &str) -> Option<u64> {
    let lines: Vec<&str> = counters.lines().collect();
    lines.chunks_exact(2).find_map(|pair| {
        let mut counted = pair[0].split(' ').zip(pair[1].split(' '));
        counted.find(|(name, _)| *name == COUNTER)?.1.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_what_is_sent() {
        let kernel = std::fs::read_to_string("/proc/self/net/netstat").unwrap();
        assert!(sent(&kernel).is_some(), "{kernel}");
        let text = "TcpExt: SyncookiesSent TCPOrigDataSent\nTcpExt: 1 20\nIpExt: InNoRoutes\nIpExt: 7\n";
        assert_eq!(sent(text), Some(20));
        assert_eq!(sent("IpExt: InNoRoutes\nIpExt: 7\n"), None);
    }

    #[test]
    fn nothing_is_seen_where_there_are_no_counters() {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        let mut answers = Answers::begin(nothing.into());
        std::thread::sleep(2 * PAUSE);
        assert!(!answers.seen());
    }
}
