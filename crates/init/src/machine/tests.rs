use std::fs::File;

use woodfrog_protocol::init::{Commit, Done, Exiting, Welcome};

use super::*;

struct Fake {
    said: Vec<Say>,
    killed: Vec<(i32, i32)>,
    starts: i32,
    reconnects: i32,
    clears: bool,
    root: Child,
}

impl World for Fake {
    fn say(&mut self, what: Say) -> bool {
        self.said.push(what);
        true
    }
    fn reconnect(&mut self, _: Instant) {
        self.reconnects += 1;
    }
    fn has_api(&self) -> bool {
        false
    }
    fn is_memory_pending(&self) -> bool {
        false
    }
    fn close_api_clients(&mut self) {}
    fn start(&mut self) -> Result<i32, u8> {
        self.starts += 1;
        Ok(299 + self.starts)
    }
    fn kill(&mut self, pid: i32, signal: i32) {
        self.killed.push((pid, signal));
    }
    fn clear(&mut self) -> bool {
        self.clears
    }
    fn look(&self, _: i32) -> Child {
        self.root
    }
    fn complain(&mut self, _: &str) {}
}

struct Test {
    machine: Machine<Fake>,
    now: Instant,
}

impl Test {
    fn waiting() -> Self {
        let world = Fake {
            said: Vec::new(),
            killed: Vec::new(),
            starts: 0,
            reconnects: 0,
            clears: true,
            root: Child::Alive,
        };
        let now = Instant::now();
        let machine = Machine::new(world, Duration::from_secs(5), Duration::from_secs(30), now);
        let mut test = Self { machine, now };
        test.told(Told::Welcome(Welcome { start: Start::Thaw.into() }));
        test
    }

    fn leased() -> Self {
        let mut test = Self::waiting();
        let worker = OwnedFd::from(File::open("/dev/null").unwrap());
        assert_eq!(test.machine.told(Told::RequestLease(Empty {}), Some(worker), test.now), Continue(()));
        test
    }

    fn committed() -> Self {
        let mut test = Self::leased();
        test.told(Told::Commit(Commit { pid: 20 }));
        assert_eq!(test.machine.world.said.last(), Some(&Say::Committed(Empty {})));
        test
    }

    fn told(&mut self, what: Told) {
        assert_eq!(self.machine.told(what, None, self.now), Continue(()));
    }

    fn done(&mut self) -> Flow {
        let done = Done { generation: 2, image_digest: "sha256:0".into() };
        self.machine.told(Told::Done(done), None, self.now)
    }

    fn cold_reason(&self) -> Option<&str> {
        match self.machine.world.said.last() {
            Some(Say::Started(started)) => Some(&started.reason),
            _ => None,
        }
    }

    /// Lets the deadline pass.
    fn wait(&mut self) -> Flow {
        self.now = self.machine.deadline().unwrap();
        self.machine.time(self.now)
    }
}

#[test]
fn done_after_the_end_of_criu_and_of_the_root_passes_the_status_on() {
    let mut test = Test::committed();
    assert_eq!(test.machine.worker_ended(test.now), Continue(()));
    assert_eq!(test.machine.child_ended(20, Exit::Code(4), test.now), Continue(()));
    assert_eq!(test.done(), Break(4));
    assert_eq!(test.machine.world.starts, 0);
}

#[test]
fn a_committed_root_that_is_dead_when_the_thaw_is_given_up_is_a_cold_start() {
    for (ended, root) in [(true, Child::NotOurs), (false, Child::Ended), (false, Child::NotOurs)] {
        let mut test = Test::committed();
        test.machine.world.root = root;
        if ended {
            assert_eq!(test.machine.child_ended(20, Exit::Signal(9), test.now), Continue(()));
        }
        test.told(Told::StartCold(Reason { message: "why".into() }));
        assert_eq!(test.machine.world.starts, 0, "CRIU is still there");
        assert_eq!(test.machine.worker_ended(test.now), Continue(()));
        assert_eq!((test.machine.world.starts, test.cold_reason()), (1, Some("why")));
    }
}

#[test]
fn a_committed_root_that_the_agent_calls_failed_is_not_adopted_though_it_lives() {
    let mut test = Test::committed();
    test.told(Told::StartCold(Reason { message: "CRIU was killed".into() }));
    assert_eq!(test.machine.worker_ended(test.now), Continue(()));
    assert_eq!((test.machine.world.starts, test.cold_reason()), (1, Some("CRIU was killed")));
}

#[test]
fn a_root_that_was_dying_when_it_was_adopted_is_a_cold_start_and_one_that_is_killed_later_is_not() {
    for (later, expected) in [(Duration::ZERO, Continue(())), (DOUBT, Break(137))] {
        let mut test = Test::committed();
        assert_eq!(test.machine.lost(test.now), Continue(()));
        assert_eq!(test.machine.worker_ended(test.now), Continue(()));
        assert_eq!((test.machine.world.starts, test.machine.world.reconnects), (0, 1));
        assert_eq!(test.machine.child_ended(20, Exit::Signal(9), test.now + later), expected);
    }
    let mut test = Test::committed();
    assert_eq!(test.done(), Continue(()));
    assert_eq!(test.machine.child_ended(20, Exit::Signal(9), test.now), Break(137));
}

#[test]
fn there_are_never_two_applications() {
    let mut test = Test::leased();
    test.machine.world.clears = false;
    assert_eq!(test.machine.lost(test.now), Continue(()));
    assert_eq!(test.machine.worker_ended(test.now), Break(137));

    let mut test = Test::leased();
    assert_eq!(test.wait(), Continue(()));
    assert_eq!(test.wait(), Break(137), "CRIU hangs");

    let mut test = Test::committed();
    assert_eq!(test.done(), Continue(()));
    test.told(Told::StartCold(Reason { message: "late".into() }));
    assert_eq!(test.machine.lost(test.now), Continue(()));
    assert_eq!(test.machine.worker_ended(test.now), Continue(()));
    assert_eq!(test.machine.world.starts, 0);
}

#[test]
fn done_that_comes_after_the_thaw_was_given_up_still_counts_while_the_root_lives() {
    let mut test = Test::committed();
    assert_eq!(test.wait(), Continue(()));
    assert_eq!(test.done(), Continue(()));
    assert_eq!(test.machine.generation(), (2, "sha256:0"));
    assert_eq!(test.machine.worker_ended(test.now), Continue(()));
    assert_eq!((test.machine.world.starts, test.machine.deadline()), (0, None));
}

#[test]
fn an_application_that_criu_reaped_ends_the_container() {
    let mut test = Test::committed();
    assert_eq!(test.done(), Continue(()));
    test.machine.world.root = Child::NotOurs;
    assert_eq!(test.machine.worker_ended(test.now), Break(137));
}

#[test]
fn signals_are_held_from_commit_on_and_delivered_in_order_once_each() {
    let mut test = Test::committed();
    for signal in [SIGTERM, 10, SIGTERM, SIGCHLD, 28] {
        assert_eq!(test.machine.signal(signal, false), Continue(()));
    }
    assert_eq!(test.machine.world.killed, []);
    assert_eq!(test.done(), Continue(()));
    assert_eq!(test.machine.world.killed, [(20, SIGTERM), (20, 10), (20, 28)]);
}

#[test]
fn a_stop_that_was_held_ends_the_container_in_place_of_a_cold_start() {
    let mut test = Test::committed();
    test.machine.world.root = Child::NotOurs;
    assert_eq!(test.machine.signal(SIGTERM, false), Continue(()));
    assert_eq!(test.machine.lost(test.now), Continue(()));
    assert_eq!(test.machine.worker_ended(test.now), Break(143));
}

#[test]
fn an_agent_that_comes_and_goes_does_not_keep_a_container_waiting_for_ever() {
    let mut test = Test::waiting();
    let end = test.now + Duration::from_secs(30);
    for _ in 0..20 {
        test.now += Duration::from_secs(2);
        if test.machine.deadline().unwrap() <= test.now {
            break;
        }
        assert_eq!(test.machine.lost(test.now), Continue(()));
        test.told(Told::Welcome(Welcome { start: Start::Thaw.into() }));
    }
    assert!(test.machine.deadline().unwrap() <= end);
}

#[test]
fn a_stop_with_a_code_that_is_none_is_137() {
    let test = &mut Test::waiting();
    let stop = |code| Told::Stop(Exiting { code });
    assert_eq!(test.machine.told(stop(0), None, test.now), Break(0));
    assert_eq!(test.machine.told(stop(-1), None, test.now), Break(137));
}

#[test]
fn a_thawed_application_does_not_outlive_its_pager() {
    let mut test = Test::committed();
    assert_eq!(test.done(), Continue(()));
    assert_eq!(test.machine.memory_lost(test.now), Break(137));
    assert_eq!(test.machine.world.starts, 0);
}

#[test]
fn a_pager_that_ends_before_the_thaw_is_done_leads_to_a_cold_start() {
    let mut test = Test::committed();
    assert_eq!(test.machine.memory_lost(test.now), Continue(()));
    assert_eq!(test.machine.world.starts, 1);
    assert_eq!(test.done(), Continue(()));

    let mut test = Test::leased();
    assert_eq!(test.machine.memory_lost(test.now), Continue(()));
    assert_eq!(test.machine.worker_ended(test.now), Continue(()));
    assert_eq!(test.machine.world.starts, 0, "the agent may want another thaw");
    let verdict = test.machine.deadline().unwrap();
    assert!(verdict <= test.now + VERDICT_GRACE);
    assert_eq!(test.machine.time(verdict), Continue(()));
    assert_eq!(test.machine.world.starts, 1);
}

#[test]
fn a_dormant_init_waits_for_a_lease_without_a_deadline_and_without_an_agent() {
    let mut test = Test::waiting();
    test.told(Told::Welcome(Welcome { start: Start::Dormant.into() }));
    assert_eq!(test.machine.deadline(), None);
    test.told(Told::Sleep(Reason { message: "the image could not be read".into() }));
    assert_eq!(test.machine.world.said.last(), Some(&Say::Asleep(Empty {})), "it is asked to in any case");
    assert_eq!(test.machine.lost(test.now), Continue(()));
    assert_eq!((test.machine.deadline(), test.machine.world.starts), (None, 0));
    test.machine.connected();
    assert!(
        matches!(test.machine.world.said.last(), Some(Say::Hello(hello)) if hello.state() == State::Dormant)
    );
    assert_eq!(test.machine.signal(SIGTERM, false), Break(128 + 15), "nothing has to end first");
}

#[test]
fn a_thawed_application_is_ended_by_sleep_and_may_be_thawed_again() {
    let mut test = Test::committed();
    assert_eq!(test.done(), Continue(()));
    test.told(Told::Sleep(Reason { message: "idle".into() }));
    assert_eq!(test.machine.world.said.last(), Some(&Say::Asleep(Empty {})));
    test.machine.connected();
    let Some(Say::Hello(hello)) = test.machine.world.said.last() else { panic!("no hello") };
    assert_eq!((hello.state(), hello.generation), (State::Dormant, 2));
    let worker = OwnedFd::from(File::open("/dev/null").unwrap());
    assert_eq!(test.machine.told(Told::RequestLease(Empty {}), Some(worker), test.now), Continue(()));
    assert_eq!(test.machine.world.said.last(), Some(&Say::LeaseGranted(Empty {})));
    assert_eq!(test.machine.world.starts, 0);
}

#[test]
fn only_a_rehearsal_ends_an_application_that_was_started() {
    let mut test = Test::waiting();
    test.told(Told::StartCold(Reason { message: "no image".into() }));
    test.told(Told::Sleep(Reason { message: "a thaw has failed".into() }));
    assert_eq!(test.cold_reason(), Some("no image"), "it runs already");
    test.told(Told::Rehearse(Reason { message: "dumped".into() }));
    assert_eq!(test.machine.world.said.last(), Some(&Say::Asleep(Empty {})));
    let worker = OwnedFd::from(File::open("/dev/null").unwrap());
    assert_eq!(test.machine.told(Told::RequestLease(Empty {}), Some(worker), test.now), Continue(()));
    assert_eq!(test.machine.world.said.last(), Some(&Say::LeaseGranted(Empty {})));
    test.told(Told::Rehearse(Reason { message: "dumped".into() }));
    assert_eq!(test.machine.world.said.last(), Some(&Say::LeaseGranted(Empty {})), "nothing runs");
}

#[test]
fn a_thaw_that_failed_leads_back_to_sleep_once_criu_is_gone() {
    let mut test = Test::committed();
    test.told(Told::Sleep(Reason { message: "no".into() }));
    assert_ne!(test.machine.world.said.last(), Some(&Say::Asleep(Empty {})), "CRIU is still there");
    assert_eq!(test.machine.worker_ended(test.now), Continue(()));
    assert_eq!(test.machine.world.said.last(), Some(&Say::Asleep(Empty {})));
    assert_eq!(test.machine.world.starts, 0);
}

#[test]
fn what_is_left_of_an_application_that_cannot_be_killed_ends_the_container() {
    let mut test = Test::committed();
    assert_eq!(test.done(), Continue(()));
    test.machine.world.clears = false;
    let sleep = Told::Sleep(Reason { message: "idle".into() });
    assert_eq!(test.machine.told(sleep, None, test.now), Break(KILLED));
}
