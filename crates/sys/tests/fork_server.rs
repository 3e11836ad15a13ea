//! A program that starts its fork server while it has one thread, which no test of the usual harness has.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use woodfrog_sys::process::{Child, Place, Program, start_fork_server};

fn main() {
    start_fork_server().unwrap();
    let server = children();
    assert_eq!(server.len(), 1);

    // More memory than its children are to be copied with.
    let memory = vec![1u8; 64 << 20];
    let child = sleep();
    assert_eq!(status(child.pid(), "PPid"), std::process::id().to_string());
    let comm = fs::read_to_string(format!("/proc/{}/comm", child.pid())).unwrap();
    assert_eq!(comm.trim(), "sleep");
    end(&child);

    let waiting = Place::default().enter().unwrap();
    let pids: Vec<_> = children().into_iter().filter(|pid| !server.contains(pid)).collect();
    assert_eq!(pids.len(), 1, "the go-between is reaped");
    let resident: u64 = status(pids[0], "RssAnon").trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 16 << 10, "{resident} KiB: it is a copy of the program");
    drop(waiting);
    assert_eq!(children(), server, "all are reaped");

    let error = Program::new(File::open("/proc/self/comm").unwrap().as_fd(), [null().as_fd(); 3])
        .start(&Place::default())
        .unwrap_err();
    assert!(error.to_string().contains("execute the program"), "{error}");

    kill_process(Pid::from_raw(server[0]).unwrap(), Signal::KILL).unwrap();
    end(&sleep());

    drop(memory);
    println!("a fork server makes children of its program, and is not needed: ok");
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

fn sleep() -> Child {
    let program = File::open("/bin/sleep").unwrap();
    let null = null();
    let mut program = Program::new(program.as_fd(), [null.as_fd(); 3]);
    program.argument(c"sleep".to_owned()).argument(c"1000".to_owned());
    program.start(&Place::default()).unwrap()
}

fn end(child: &Child) {
    Command::new("kill").arg(child.pid().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().terminating_signal(), Some(Signal::TERM.as_raw()));
}

fn children() -> Vec<i32> {
    let me = std::process::id();
    let list = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}
