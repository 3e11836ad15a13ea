//! The driver against a real CRIU.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::container::{COUNTER, Container, directory, toolchain};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use woodfrog_criu::{CriuError, DumpOptions, End, Kdat, Restore, RestoreStage, Setup, Toolchain, Worker};

/// Freezes PID 300 of a container into `images`; the container runs on.
async fn dump(toolchain: &Arc<Toolchain>, source: &Container, images: &Path) -> Result<(), CriuError> {
    let mut setup = source.setup(images);
    let given = setup.give(directory(images));
    let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
    worker.dump(given, &DumpOptions::new(300)).await?.finish().await
}

/// Starts to restore `images` into a container, whose output takes the place of `key`.
async fn restore(
    toolchain: &Arc<Toolchain>,
    target: &Container,
    images: &Path,
    key: &str,
) -> (TempDir, Restore) {
    let work = tempfile::tempdir().unwrap();
    let (mut setup, options) = target.restore_setup(work.path(), key);
    let given = setup.give(directory(images));
    let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
    (work, worker.restore(given, &options).await.unwrap())
}

#[tokio::test]
async fn node_a_process_goes_on_in_ten_other_containers() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::running(COUNTER);
    source.count();
    let images = tempfile::tempdir().unwrap();
    dump(&toolchain, &source, images.path()).await.unwrap();

    let mut counts = Vec::new();
    for _ in 0..10 {
        let mut target = Container::waiting();
        let start = Instant::now();
        let (_work, mut restore) = restore(&toolchain, &target, images.path(), &source.stdout_key()).await;
        let spawned = start.elapsed();
        assert_eq!(restore.restored().await.unwrap(), 300);
        let restored = start.elapsed();
        let ended = restore.finish().await.unwrap();
        assert_eq!(ended.pid, 300);
        assert!([ended.images, ended.tasks].iter().all(|step| !step.is_zero()), "{ended:?}");
        assert!(ended.images + ended.tasks <= restored, "{ended:?}");
        assert!([ended.catch, ended.release].iter().all(|step| !step.is_zero()), "{ended:?}");
        eprintln!("spawned {spawned:?}, restored {restored:?}, running {:?}", start.elapsed());
        assert_eq!(target.parent(300), target.host_pid1);
        counts.push(target.count());
    }
    // All go on from the same moment, and that was not the beginning.
    assert!(counts[0] > 0);
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}

#[tokio::test]
async fn node_a_dump_that_is_refused_or_abandoned_at_any_stage_leaves_the_application_running() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::running(COUNTER);
    source.count();
    for abandon in [false, true] {
        let mut stages = 0;
        loop {
            let images = tempfile::tempdir().unwrap();
            let mut setup = source.setup(images.path());
            let given = setup.give(directory(images.path()));
            let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
            let mut dump = worker.dump(given, &DumpOptions::new(300)).await.unwrap();
            let mut stage = None;
            for _ in 0..=stages {
                stage = dump.next().await.unwrap();
            }
            let Some(stage) = stage else { break };
            stages += 1;
            if abandon {
                drop(dump);
            } else {
                dump.refuse().await.unwrap();
            }
            source.eventually(&format!("criu has gone after {stage:?}"), |source| source.pids() == [300]);
            assert_eq!(source.status(300, "TracerPid"), "0", "after {stage:?}");
            source.skim();
            let before = source.count();
            assert_eq!(source.count(), before + 1, "after {stage:?}");
        }
        assert_eq!(stages, 3, "pre-dump, query-ext-files, post-dump");
    }
}

#[tokio::test]
async fn node_a_restore_that_is_refused_or_abandoned_before_the_tasks_run_leaves_nothing() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::running(COUNTER);
    source.count();
    let images = tempfile::tempdir().unwrap();
    dump(&toolchain, &source, images.path()).await.unwrap();
    let mut target = Container::waiting();

    for abandon in [false, true] {
        let mut passed = 0;
        loop {
            let key = source.stdout_key();
            let (_work, mut restore) = restore(&toolchain, &target, images.path(), &key).await;
            for _ in 0..passed {
                restore.next().await.unwrap();
            }
            let stage = restore.next().await.unwrap().unwrap();
            let last = matches!(stage, RestoreStage::PostRestore { .. });
            assert!(!last || target.alive(300), "the tree is there at {stage:?}");
            if abandon {
                drop(restore);
            } else {
                restore.refuse().await.unwrap();
            }
            target.eventually(&format!("all has gone after {stage:?}"), |target| target.pids().is_empty());
            passed += 1;
            if last {
                break;
            }
        }
        assert!(passed >= 2, "at least pre-restore and post-restore");
    }
    // The container is as good as new.
    let (_work, restore) = restore(&toolchain, &target, images.path(), &source.stdout_key()).await;
    assert_eq!(restore.finish().await.unwrap().pid, 300);
    assert!(target.count() > 0);
}

#[tokio::test]
async fn node_a_restore_that_is_abandoned_once_the_tasks_are_committed_goes_on_without_the_caller() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::running(COUNTER);
    source.count();
    let images = tempfile::tempdir().unwrap();
    dump(&toolchain, &source, images.path()).await.unwrap();

    let mut more = 1;
    loop {
        let mut target = Container::waiting();
        let (_work, mut restore) = restore(&toolchain, &target, images.path(), &source.stdout_key()).await;
        restore.restored().await.unwrap();
        let mut stage = None;
        for _ in 0..more {
            stage = restore.next().await.unwrap();
        }
        let Some(stage) = stage else { break };
        eprintln!("abandoned at {stage:?}");
        drop(restore);
        target.eventually("only the application is left", |target| target.pids() == [300]);
        assert!(target.count() > 0);
        more += 1;
    }
    assert!(more > 2, "pre-resume and post-resume");
}

#[tokio::test]
async fn node_features_are_told() {
    let Some(toolchain) = toolchain() else { return };
    let work = tempfile::tempdir().unwrap();
    let worker = Worker::spawn(toolchain.clone(), Setup::new(directory(work.path()))).await.unwrap();
    // Every kernel that is supported has these two; soft-dirty pages are a matter of configuration.
    let features = worker.features().await.unwrap();
    assert!(features.lazy_pages && features.pidfd_store, "{features:?}");
}

#[tokio::test]
async fn node_a_light_worker_has_not_loaded_what_a_restore_does_without() {
    let Some(toolchain) = toolchain() else { return };
    for light in [false, true] {
        let work = tempfile::tempdir().unwrap();
        let setup = Setup::new(directory(work.path())).light(light);
        let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
        let loaded = |library: &str| {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", worker.pid())).unwrap();
            maps.lines().any(|line| line.contains(library))
        };
        let start = Instant::now();
        // Which comes after those that CRIU names before it.
        while !loaded("/libc.so") {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(loaded("/libgnutls.so"), !light);
        assert_eq!(loaded("/libnftables.so"), !light);
    }
}

#[tokio::test]
async fn node_the_cache_of_kernel_features_is_made_once_and_made_anew_when_it_is_stale() {
    let Some(toolchain) = toolchain() else { return };
    let path = Path::new("/run/criu.kdat");
    toolchain.ensure_kdat(path).unwrap();
    assert_eq!(toolchain.ensure_kdat(path).unwrap(), Kdat::Valid);
    std::fs::write(path, "of another kernel").unwrap();
    assert_eq!(toolchain.ensure_kdat(path).unwrap(), Kdat::Stale);
    std::fs::remove_file(path).unwrap();
    assert_eq!(toolchain.ensure_kdat(path).unwrap(), Kdat::Missing);
}

#[tokio::test]
async fn node_an_application_outlives_a_criu_that_is_killed_while_it_is_held() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::running(COUNTER);
    source.count();
    for stages in [2, 3] {
        let images = tempfile::tempdir().unwrap();
        let mut setup = source.setup(images.path());
        let given = setup.give(directory(images.path()));
        let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
        let criu = Pid::from_raw(worker.pid()).unwrap();
        let mut dump = worker.dump(given, &DumpOptions::new(300)).await.unwrap();
        for _ in 0..stages {
            dump.next().await.unwrap();
        }
        kill_process(criu, Signal::KILL).unwrap();
        let error = dump.next().await.unwrap_err();
        assert_eq!(error.failure().unwrap().end, End::Killed(9), "{error}");
        source.skim();
        let before = source.count();
        assert_eq!(source.count(), before + 1);
    }
}

/// The one case that CRIU cannot clean up after itself: whoever waits for the worker has to kill what it has left.
#[tokio::test]
async fn node_tasks_of_a_criu_that_was_killed_before_they_ran_are_left_and_never_run() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::running(COUNTER);
    source.count();
    let images = tempfile::tempdir().unwrap();
    dump(&toolchain, &source, images.path()).await.unwrap();
    let mut target = Container::waiting();
    let work = tempfile::tempdir().unwrap();
    let (mut setup, options) = target.restore_setup(work.path(), &source.stdout_key());
    let given = setup.give(directory(images.path()));
    let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
    let criu = Pid::from_raw(worker.pid()).unwrap();
    let mut restore = worker.restore(given, &options).await.unwrap();
    restore.restored().await.unwrap();
    kill_process(criu, Signal::KILL).unwrap();
    let error = restore.next().await.unwrap_err();
    assert_eq!(error.failure().unwrap().end, End::Killed(9), "{error}");

    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(target.pids(), [300]);
    assert_eq!(target.parent(300), target.host_pid1);
    assert_eq!(target.waiting_bytes(), 0, "it has run");
    let task = Pid::from_raw(target.host_pid(300) as i32).unwrap();
    kill_process(task, Signal::KILL).unwrap();
    target.eventually("it has gone", |target| target.pids().is_empty());
}

/// One that waits in a container is not to hold up the end of that: PID 1 stays until all others have been reaped.
#[tokio::test]
async fn node_a_criu_that_waits_ends_with_its_container_and_is_reaped() {
    let Some(toolchain) = toolchain() else { return };
    let mut target = Container::waiting();
    let work = tempfile::tempdir().unwrap();
    let worker = Worker::spawn(toolchain.clone(), target.setup(work.path())).await.unwrap();
    let ends = tokio::time::timeout(Duration::from_millis(100), worker.ended()).await;
    assert!(ends.is_err(), "it has ended before");

    kill_process(Pid::from_raw(target.host_pid1 as i32).unwrap(), Signal::KILL).unwrap();
    tokio::time::timeout(Duration::from_secs(10), worker.ended()).await.unwrap();
    let pid1 = Path::new("/proc").join(target.host_pid1.to_string());
    assert!(pid1.exists(), "PID 1 waits for it");
    drop(worker);
    target.eventually("PID 1 has gone", |_| !pid1.exists());
}
