//! Cold starts, exit statuses, signals, the search for the agent.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::thread::set_thread_res_uid;
use woodfrog_protocol::init::{Empty, Exiting, Start, State, from_init::Kind as Say, to_init::Kind as Told};

use crate::agent::Agent;
use crate::sandbox::{Plan, can_run, children, eventually, inner_pid, status};

#[test]
fn the_exit_code_is_the_applications() {
    if !can_run() {
        return;
    }
    let (code, out, err) = Plan::script("echo out; echo err >&2; exit 7").start().end();
    assert_eq!((code, out.as_str(), err.as_str()), (7, "out\n", "err\n"));
}

#[test]
fn a_signal_that_kills_the_application_is_128_and_its_number_also_a_real_time_one() {
    if !can_run() {
        return;
    }
    assert_eq!(Plan::script("kill -SEGV $$").start().end().0, 128 + 11);
    assert_eq!(Plan::script("kill -40 $$").start().end().0, 128 + 40);
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_may_not_run_126() {
    if !can_run() {
        return;
    }
    let (code, _, err) = Plan::command(&["no-such-program"]).start().end();
    assert_eq!(
        (code, err.as_str()),
        (127, "woodfrog-init: exec: \"no-such-program\": executable file not found in $PATH\n")
    );
    let (code, _, err) = Plan::command(&["/etc/passwd"]).start().end();
    assert_eq!((code, err.as_str()), (126, "woodfrog-init: exec: \"/etc/passwd\": permission denied\n"));
    let (code, _, err) = Plan::command(&["/no/such"]).start().end();
    assert_eq!((code, err.as_str()), (127, "woodfrog-init: exec: \"/no/such\": no such file or directory\n"));
}

#[test]
fn a_missing_command_file_is_127_and_a_bad_one_126_each_with_its_path() {
    if !can_run() {
        return;
    }
    let (code, _, err) = Plan::script("").start_with(None).end();
    assert!(code == 127 && err.contains("/run/woodfrog/command.bin"), "{code} {err}");
    let (code, _, err) = Plan::script("").start_with(Some(b"garbage and more")).end();
    assert!(code == 126 && err.contains("not a woodfrog frame"), "{code} {err}");
}

#[test]
fn the_program_is_found_in_the_path_of_the_environment() {
    if !can_run() {
        return;
    }
    let bin = tempfile::tempdir().unwrap();
    let program = bin.path().join("greet");
    std::fs::write(&program, "#!/bin/sh\necho \"hello $NAME from $(pwd)\"\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("/nowhere:{}:/usr/bin:/bin", bin.path().display());
    let (code, out, _) = Plan::command(&["greet"]).env("PATH", &path).env("NAME", "frog").start().end();
    let here = std::env::current_dir().unwrap();
    assert_eq!((code, out), (0, format!("hello frog from {}\n", here.display())));
}

#[test]
fn the_application_is_a_session_leader_and_subreaper_at_pid_300_or_above_without_inits_descriptors_or_mask() {
    if !can_run() {
        return;
    }
    // An orphan of a grandchild must become the application's child, not init's.
    let mut sandbox = Plan::script("(sleep 1000 &) ; echo ready; while :; do sleep 1; done").start();
    sandbox.output_until("ready");
    let application = sandbox.application();
    let pid = inner_pid(application);
    assert!((300..400).contains(&pid), "{pid}");
    assert_eq!(status(application, "NSsid").split_whitespace().last(), Some(pid.to_string().as_str()));
    eventually("the orphan is the application's", || {
        children(application).iter().any(|&child| {
            std::fs::read(format!("/proc/{child}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0")
        })
    });
    let descriptors: Vec<_> = std::fs::read_dir(format!("/proc/{application}/fd"))
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .filter(|target| target.starts_with("anon_inode") || target.starts_with("socket"))
        .collect();
    assert_eq!(descriptors, [""; 0]);
    // A shell blocks signals for moments while it forks.
    eventually("no signal is blocked", || status(application, "SigBlk") == "0000000000000000");
    assert_eq!(u64::from_str_radix(&status(application, "SigIgn"), 16).unwrap() & (1 << 12), 0, "SIGPIPE");
}

#[test]
fn every_signal_that_can_be_caught_goes_to_the_application_alone() {
    if !can_run() {
        return;
    }
    let mut sandbox = Plan::script(
        "for s in HUP INT QUIT USR1 USR2 WINCH CONT TSTP PIPE; do trap \"echo $s\" $s; done; trap 'exit 5' TERM
         sh -c 'trap \"echo child\" HUP USR1; echo ready; while :; do sleep 0.02; done' & while :; do sleep 0.02; done",
    )
    .start();
    sandbox.output_until("ready");
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
        (Signal::TSTP, "TSTP"),
        (Signal::PIPE, "PIPE"),
    ] {
        sandbox.signal(signal);
        assert!(!sandbox.output_until(&format!("{name}\n")).contains("child"));
    }
    sandbox.signal(Signal::TERM);
    assert_eq!(sandbox.end().0, 5);
}

#[test]
fn an_application_that_does_not_handle_sigterm_ends_by_it() {
    if !can_run() {
        return;
    }
    let sandbox = Plan::command(&["sleep", "1000"]).start();
    sandbox.application();
    sandbox.signal(Signal::TERM);
    assert_eq!(sandbox.end().0, 143);
}

#[test]
fn without_an_agent_a_cold_start_is_not_held_up_and_init_sleeps() {
    if !can_run() {
        return;
    }
    let sandbox = Plan::command(&["sleep", "1000"]).start();
    sandbox.application();
    std::thread::sleep(Duration::from_millis(100));
    let switches = || status(sandbox.init(), "voluntary_ctxt_switches");
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(before, switches());
}

#[test]
fn an_agent_that_appears_later_and_one_that_is_restarted_are_found() {
    if !can_run() {
        return;
    }
    let sandbox = Plan::command(&["sleep", "1000"]).start();
    let pid = inner_pid(sandbox.application());
    std::thread::sleep(Duration::from_millis(200));

    let agent = Agent::listen(sandbox.dir());
    let (mut connection, hello) = agent.accept();
    assert_eq!((hello.state(), hello.application_pid, hello.generation), (State::Cold, pid, 0));
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));
    connection.welcome(Start::Thaw, None);
    let started = connection.started();
    assert_eq!((started.pid, started.reason.as_str()), (pid, "no thaw was asked for"));

    drop((connection, agent));
    std::thread::sleep(Duration::from_millis(300));
    let (connection, hello) = Agent::listen(sandbox.dir()).accept();
    assert_eq!((hello.state(), hello.application_pid), (State::Cold, pid));
    // Told once: the next thing said is the end.
    let mut connection = connection;
    connection.welcome(Start::Cold, None);
    sandbox.signal(Signal::TERM);
    assert_eq!(connection.next(), Some(Say::Exiting(Exiting { code: 143 })));
    assert_eq!(connection.next(), None);
    assert_eq!(sandbox.end().0, 143);
}

#[test]
fn an_agent_that_is_not_root_is_not_spoken_to() {
    if !can_run() {
        return;
    }
    let plan = Plan::command(&["sleep", "1000"]).thaw(600, 600);
    std::fs::set_permissions(plan.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let dir = plan.dir().to_owned();
    let impostor = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        Agent::listen(&dir)
    });
    let impostor = impostor.join().unwrap();
    let sandbox = plan.start();
    let began = Instant::now();
    sandbox.application();
    assert!(began.elapsed() > Duration::from_millis(300));
    drop(impostor);
    let (mut connection, _) = Agent::listen(sandbox.dir()).accept();
    connection.welcome(Start::Thaw, None);
    assert_eq!(connection.started().reason, "no node agent within 600 ms");
}

#[test]
fn an_agent_that_talks_nonsense_costs_it_the_connection_and_nothing_else() {
    if !can_run() {
        return;
    }
    let plan = Plan::script("trap 'exit 4' USR1; while :; do sleep 0.02; done");
    let agent = Agent::listen(plan.dir());
    let mut sandbox = plan.start();
    let (connection, _) = agent.accept();
    connection.garbage();
    let (mut connection, hello) = agent.accept();
    assert_eq!(hello.state(), State::Cold);
    connection.welcome(Start::Cold, None);
    connection.started();
    connection.say(Told::EndDump(Empty {}));
    connection.done(9);
    connection.start_cold("again");
    connection.say(Told::Commit(woodfrog_protocol::init::Commit { pid: 1 }));
    assert_eq!(connection.refused(), "there is no lease");
    assert!(sandbox.lives());
    sandbox.signal(Signal::USR1);
    assert_eq!(sandbox.end().0, 4);
}

#[test]
fn stop_ends_the_container_with_the_code_that_was_asked_for() {
    if !can_run() {
        return;
    }
    let plan = Plan::script("trap '' TERM; while :; do sleep 1; done");
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let (mut connection, _) = agent.accept();
    connection.welcome(Start::Cold, None);
    connection.started();
    connection.say(Told::Stop(Exiting { code: 3 }));
    assert_eq!(connection.next(), Some(Say::Exiting(Exiting { code: 3 })));
    assert_eq!(sandbox.end().0, 3);
}
