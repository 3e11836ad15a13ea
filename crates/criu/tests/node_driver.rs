//! The driver against a real CRIU. Needs root, `criu`, `unshare` and `python3`, in a mount namespace that was made by
//! `pivot_root` (see the test node); skipped elsewhere.

mod container;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use container::{COUNTER, Container, directory, toolchain};
use tempfile::TempDir;
use woodfrog_criu::{CriuError, DumpOptions, Restore, Toolchain, Worker};

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
        assert_eq!(restore.finish().await.unwrap(), 300);
        eprintln!("spawned {spawned:?}, restored {restored:?}, running {:?}", start.elapsed());
        assert_eq!(target.parent(300), target.host_pid1);
        counts.push(target.count());
    }
    // All go on from the same moment, and that was not the beginning.
    assert!(counts[0] > 0);
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}
