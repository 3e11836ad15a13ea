//! What a dump changes.

use std::time::Duration;

use rustix::process::Signal;
use woodfrog_protocol::init::{Empty, Start, to_init::Kind as Told};

use crate::agent::{Agent, Connection};
use crate::sandbox::{Plan, Sandbox, can_run, kill};

fn cold(script: &str) -> (Sandbox, Agent, Connection) {
    let plan = Plan::script(script);
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let (mut connection, _) = agent.accept();
    connection.welcome(Start::Cold, None);
    connection.started();
    (sandbox, agent, connection)
}

const COUNTS: &str =
    "trap 'echo usr' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.02; done";

#[test]
fn signals_are_held_during_a_dump_and_delivered_after_it() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = cold(COUNTS);
    sandbox.output_until("ready");
    connection.begin_dump();
    sandbox.signal(Signal::USR1);
    sandbox.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(sandbox.lives());
    connection.say(Told::EndDump(Empty {}));
    let (code, out, _) = sandbox.end();
    assert_eq!(code, 3);
    assert!(out.contains("term"), "{out}");
}

#[test]
fn an_agent_that_dies_during_a_dump_ends_the_dump() {
    if !can_run() {
        return;
    }
    let (mut sandbox, agent, mut connection) = cold(COUNTS);
    sandbox.output_until("ready");
    connection.begin_dump();
    sandbox.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(100));
    assert!(sandbox.lives());
    drop((connection, agent));
    assert_eq!(sandbox.end().0, 3);
}

#[test]
fn an_application_that_a_dump_kills_is_started_again() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = cold(COUNTS);
    sandbox.output_until("ready");
    let first = sandbox.application();
    connection.begin_dump();
    kill(first, Signal::KILL);
    let started = connection.started();
    assert_eq!(started.reason, "killed by signal 9 during a dump");
    assert!(started.pid > 300);
    sandbox.output_until("ready");
    sandbox.signal(Signal::TERM);
    assert_eq!(sandbox.end().0, 3);
}

#[test]
fn an_application_that_was_to_be_stopped_is_not_started_again() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = cold(COUNTS);
    sandbox.output_until("ready");
    let first = sandbox.application();
    connection.begin_dump();
    sandbox.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(100));
    kill(first, Signal::KILL);
    assert_eq!(sandbox.end().0, 143);
}

#[test]
fn an_application_that_exits_during_a_dump_ends_the_container_with_its_code() {
    if !can_run() {
        return;
    }
    let (mut sandbox, _agent, mut connection) = cold("echo ready; sleep 0.5; exit 11");
    sandbox.output_until("ready");
    connection.begin_dump();
    assert_eq!(sandbox.end().0, 11);
}
