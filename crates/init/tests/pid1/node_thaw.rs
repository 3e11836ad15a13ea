//! The lease, in every order of who dies when. CRIU is played by a shell that enters the namespace and starts a root.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use woodfrog_protocol::init::{Empty, Exiting, Start, State, from_init::Kind as Say, to_init::Kind as Told};

use crate::agent::{Agent, Connection};
use crate::sandbox::{Entered, Plan, Sandbox, can_run, inner_pid};

/// Says the root's PID, and ends when its standard input is closed.
const RESTORE: &str = "sh -c 'trap \"exit 42\" TERM; echo $$; while :; do sleep 0.02; done' & read x";
/// The same, but kills what it restored, as CRIU does when its agent is gone.
const RESTORE_AND_FAIL: &str = "sleep 1000 & echo $!; read x; kill -9 $!; wait $!";

fn waiting(thaw_ms: u32) -> (Sandbox, Agent, Connection) {
    let plan =
        Plan::script("trap 'exit 9' TERM; echo cold; while :; do sleep 0.02; done").thaw(20_000, thaw_ms);
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let connection = agent.welcome_waiting();
    (sandbox, agent, connection)
}

/// The agent after its restart; what init says to it.
fn again(sandbox: &Sandbox) -> (Connection, woodfrog_protocol::init::Hello) {
    let (connection, hello) = Agent::listen(sandbox.dir()).accept();
    connection.welcome(Start::Thaw, None);
    (connection, hello)
}

fn committed(sandbox: &Sandbox, connection: &mut Connection, script: &str) -> (Entered, i32) {
    let worker = sandbox.enter(script);
    connection.lease(&worker);
    let root = worker.number();
    connection.commit(root);
    (worker, root)
}

#[test]
fn a_thaw_hands_the_container_to_the_restored_root() {
    if !can_run() {
        return;
    }
    let (sandbox, agent, mut connection) = waiting(20_000);
    let (worker, root) = committed(&sandbox, &mut connection, RESTORE);
    connection.done(3);
    worker.finish();

    drop((connection, agent));
    let (mut connection, hello) = again(&sandbox);
    assert_eq!((hello.state(), hello.application_pid, hello.generation), (State::Thawed, root, 3));
    sandbox.signal(Signal::TERM);
    assert_eq!(connection.next(), Some(Say::Exiting(Exiting { code: 42 })));
    let (code, out, err) = sandbox.end();
    assert_eq!((code, out.as_str(), err.as_str()), (42, "", ""));
}

#[test]
fn a_root_that_ends_before_criu_does_passes_its_status_on() {
    if !can_run() {
        return;
    }
    let (sandbox, _agent, mut connection) = waiting(20_000);
    let (worker, _) = committed(&sandbox, &mut connection, "(sleep 0.3; exit 6) & echo $!; exec sleep 1");
    connection.done(1);
    assert_eq!(connection.next(), Some(Say::Exiting(Exiting { code: 6 })));
    assert_eq!(sandbox.end().0, 6);
    worker.finish();
}

#[test]
fn no_agent_in_time_is_a_cold_start_that_is_told_later() {
    if !can_run() {
        return;
    }
    let began = Instant::now();
    let mut sandbox = Plan::script("echo cold; sleep 1000").thaw(400, 20_000).start();
    sandbox.output_until("cold");
    assert!(began.elapsed() >= Duration::from_millis(400));
    let (mut connection, hello) = again(&sandbox);
    assert_eq!(hello.state(), State::Cold);
    assert_eq!(connection.started().reason, "no node agent within 400 ms");
    connection.request_lease(&sandbox.enter("echo; read x"));
    assert_eq!(connection.refused(), "the application runs already");
}

#[test]
fn an_agent_that_accepts_and_never_answers_is_a_cold_start() {
    if !can_run() {
        return;
    }
    let plan = Plan::script("echo cold; sleep 1000").thaw(300, 20_000);
    let agent = Agent::listen(plan.dir());
    let mut sandbox = plan.start();
    let (_connection, hello) = agent.accept();
    assert_eq!(hello.state(), State::Waiting);
    sandbox.output_until("cold");
}

#[test]
fn an_agent_that_appears_in_time_is_waited_for() {
    if !can_run() {
        return;
    }
    let sandbox = Plan::script("echo cold").thaw(20_000, 20_000).start();
    std::thread::sleep(Duration::from_millis(300));
    let mut connection = Agent::listen(sandbox.dir()).welcome_waiting();
    let (worker, root) = committed(&sandbox, &mut connection, RESTORE);
    connection.done(1);
    worker.finish();
    assert!(root < 300);
    sandbox.signal(Signal::TERM);
    assert_eq!(sandbox.end().0, 42);
}

#[test]
fn a_welcome_to_a_cold_start_and_a_word_to_start_cold_are_obeyed_at_once() {
    if !can_run() {
        return;
    }
    let plan = Plan::script("echo cold; sleep 1000").thaw(20_000, 20_000);
    let agent = Agent::listen(plan.dir());
    let mut sandbox = plan.start();
    let (mut connection, _) = agent.accept();
    connection.welcome(Start::Cold, None);
    assert_eq!(connection.started().reason, "the node agent asked for a cold start");
    sandbox.output_until("cold");

    let (mut sandbox, _agent, mut connection) = waiting(20_000);
    connection.start_cold("the image is for another processor");
    let started = connection.started();
    assert_eq!(started.reason, "the image is for another processor");
    assert!(started.pid >= 300);
    sandbox.output_until("cold");
}

#[test]
fn a_lease_that_is_never_asked_for_is_a_cold_start() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = waiting(300);
    assert_eq!(connection.started().reason, "no thaw began within 300 ms");
    sandbox.output_until("cold");
}

#[test]
fn the_lease_is_granted_once_and_only_for_a_pidfd() {
    if !can_run() {
        return;
    }
    let (sandbox, _agent, mut connection) = waiting(20_000);
    connection.say(Told::RequestLease(Empty {}));
    assert_eq!(connection.refused(), "no pidfd came with the request");
    let worker = sandbox.enter(RESTORE);
    connection.lease(&worker);
    connection.request_lease(&worker);
    assert_eq!(connection.refused(), "the lease is out already");
    worker.finish();
}

#[test]
fn a_welcome_without_a_listener_leaves_the_pidfd_to_the_request_that_comes_with_it() {
    if !can_run() {
        return;
    }
    let plan = Plan::script("echo cold").thaw(20_000, 20_000);
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let (mut connection, _) = agent.accept();
    let worker = sandbox.enter(RESTORE);
    sandbox.signal(Signal::STOP);
    connection.welcome(Start::Thaw, None);
    connection.request_lease(&worker);
    sandbox.signal(Signal::CONT);
    assert_eq!(connection.next(), Some(Say::LeaseGranted(Empty {})));
    worker.finish();
}

#[test]
fn an_agent_that_dies_while_init_waits_may_come_back_and_thaw() {
    if !can_run() {
        return;
    }
    let (sandbox, agent, connection) = waiting(20_000);
    drop((connection, agent));
    let mut connection = Agent::listen(sandbox.dir()).welcome_waiting();
    let (worker, _) = committed(&sandbox, &mut connection, RESTORE);
    connection.done(1);
    worker.finish();
    sandbox.signal(Signal::TERM);
    assert_eq!(sandbox.end().0, 42);
}

#[test]
fn an_agent_that_dies_with_the_lease_is_a_cold_start_once_criu_is_gone() {
    if !can_run() {
        return;
    }
    let (mut sandbox, agent, mut connection) = waiting(20_000);
    let worker = sandbox.enter(RESTORE);
    connection.lease(&worker);
    drop((connection, agent));
    let (mut connection, hello) = again(&sandbox);
    assert_eq!(hello.state(), State::Leased);
    connection.request_lease(&worker);
    assert_eq!(connection.refused(), "the lease is out already");
    // What CRIU leaves behind is killed first: never two applications.
    let left = worker.number();
    worker.finish();
    assert_eq!(connection.started().reason, "the connection to the node agent was lost during the thaw");
    sandbox.output_until("cold");
    assert!(sandbox.enter(&format!("kill -0 {left} 2>/dev/null; echo $?")).number() != 0);
}

#[test]
fn an_agent_that_dies_after_commit_leaves_a_living_root_as_the_application() {
    if !can_run() {
        return;
    }
    let (mut sandbox, agent, mut connection) = waiting(20_000);
    let (worker, root) = committed(&sandbox, &mut connection, RESTORE);
    drop((connection, agent));
    // Held until it is clear who gets it.
    sandbox.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    assert!(sandbox.lives());
    let (_connection, hello) = again(&sandbox);
    assert_eq!((hello.state(), hello.application_pid), (State::Leased, root));
    worker.finish();
    let (code, out, _) = sandbox.end();
    assert_eq!((code, out.as_str()), (42, ""));
}

#[test]
fn an_adopted_root_learns_its_generation_from_the_next_agent() {
    if !can_run() {
        return;
    }
    let (sandbox, agent, mut connection) = waiting(20_000);
    let (worker, root) = committed(&sandbox, &mut connection, RESTORE);
    drop((connection, agent));
    let agent = Agent::listen(sandbox.dir());
    let (mut connection, hello) = agent.accept();
    assert_eq!((hello.state(), hello.application_pid), (State::Leased, root));
    connection.welcome(Start::Cold, None);
    worker.finish();
    assert_eq!(connection.next(), None, "it hangs up to say Hello again");
    let (connection, hello) = agent.accept();
    assert_eq!((hello.state(), hello.application_pid, hello.generation), (State::Thawed, root, 0));
    connection.welcome(Start::Thaw, None);
    connection.done(8);
    drop((connection, agent));
    assert_eq!(again(&sandbox).1.generation, 8);
}

#[test]
fn an_agent_that_dies_after_commit_is_a_cold_start_when_the_root_is_dead() {
    if !can_run() {
        return;
    }
    let (mut sandbox, agent, mut connection) = waiting(20_000);
    let (worker, _) = committed(&sandbox, &mut connection, RESTORE_AND_FAIL);
    drop((connection, agent));
    worker.finish();
    sandbox.output_until("cold");
    assert!(inner_pid(sandbox.application()) >= 300);
    sandbox.signal(Signal::TERM);
    assert_eq!(sandbox.end().0, 9);
}

#[test]
fn a_thaw_that_takes_too_long_is_given_up_but_not_before_criu_is_gone() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = waiting(300);
    let worker = sandbox.enter(RESTORE);
    connection.lease(&worker);
    std::thread::sleep(Duration::from_millis(600));
    connection.say(Told::Commit(woodfrog_protocol::init::Commit { pid: worker.number() }));
    assert_eq!(connection.refused(), "the thaw was given up already");
    worker.finish();
    assert_eq!(connection.started().reason, "the thaw took more than 300 ms");
    sandbox.output_until("cold");
}

#[test]
fn a_criu_that_never_ends_ends_the_container() {
    if !can_run() {
        return;
    }
    let (sandbox, _agent, mut connection) = waiting(200);
    let worker = sandbox.enter(RESTORE);
    connection.lease(&worker);
    let (code, out, err) = sandbox.end();
    assert_eq!((code, out.as_str()), (137, ""));
    assert!(err.contains("CRIU does not end"), "{err}");
}

#[test]
fn a_criu_that_ends_before_commit_gives_the_agent_a_moment_to_say_why() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = waiting(20_000);
    let worker = sandbox.enter("echo; read x");
    connection.lease(&worker);
    worker.finish();
    connection.start_cold("no such PID 17");
    assert_eq!(connection.started().reason, "no such PID 17");
    sandbox.output_until("cold");

    let (mut sandbox, _agent, mut connection) = waiting(20_000);
    let worker = sandbox.enter("echo; read x");
    connection.lease(&worker);
    worker.finish();
    assert_eq!(connection.started().reason, "CRIU ended before the thaw was done");
    sandbox.output_until("cold");
}

#[test]
fn signals_that_ask_to_end_do_so_while_there_is_no_application_and_others_are_dropped() {
    if !can_run() {
        return;
    }
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::QUIT, 131), (Signal::HUP, 129)] {
        let (mut sandbox, _agent, _connection) = waiting(20_000);
        sandbox.signal(Signal::USR1);
        sandbox.signal(Signal::WINCH);
        std::thread::sleep(Duration::from_millis(50));
        assert!(sandbox.lives());
        sandbox.signal(signal);
        let (got, out, err) = sandbox.end();
        assert_eq!((got, out.as_str(), err.as_str()), (code, "", ""));
    }
}
