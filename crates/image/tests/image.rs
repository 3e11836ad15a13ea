//! A built image is an ordinary image, the same for the same input, and holds what it should.

mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use woodfrog_image::*;

fn open(directory: &std::path::Path) -> std::fs::File {
    std::fs::File::open(directory).unwrap()
}

fn config(store: &BlobStore, image: &BuiltImage) -> Value {
    let digest = image.config.digest().to_string();
    serde_json::from_reader(store.get(&digest, image.config.size()).unwrap().unwrap()).unwrap()
}

/// Path and content of every file in a layer of the store.
fn files(store: &BlobStore, layer: &Layer) -> Vec<(String, u32, Vec<u8>)> {
    let blob = store.get(&layer.digest, layer.size).unwrap().unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(blob).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        (entry.path().unwrap().to_str().unwrap().to_owned(), header.mode().unwrap(), content)
    });
    entries.collect()
}

#[test]
fn the_same_input_gives_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let build = |name: &str| {
        let store = BlobStore::open(directory.path().join(name)).unwrap();
        let base = support::Base::new(&store);
        support::build(&store, base.image())
    };
    assert_eq!(build("one").digest, build("other").digest);
}

#[test]
fn state_and_memory_are_layers_of_their_own_and_readable_by_root_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let image = support::build(&store, support::Base::new(&store).image());
    let [state, memory] = image.new_layers.as_slice() else { panic!("{:?}", image.new_layers) };

    let state = files(&store, state);
    let names: Vec<_> = state.iter().map(|file| (file.0.as_str(), file.1)).collect();
    let expected = [
        (".woodfrog/", 0o700),
        (".woodfrog/checkpoint/", 0o700),
        (".woodfrog/checkpoint/woodfrog.json", 0o600),
        (".woodfrog/checkpoint/core-300.img", 0o600),
        (".woodfrog/checkpoint/inventory.img", 0o600),
    ];
    assert_eq!(names, expected);
    assert_eq!(CheckpointRecord::from_json(&state[2].2).unwrap(), image.record);

    let memory = files(&store, memory);
    assert_eq!(memory[2].0, ".woodfrog/checkpoint/pages-1.img");
    let recorded = &image.record.memory[0];
    assert_eq!((recorded.name.as_str(), recorded.size), ("pages-1.img", 12_000_000));
    assert_eq!(memory[2].2.len(), 12_000_000);
}

#[test]
fn what_is_wanted_first_is_a_last_layer_that_names_its_capture_and_no_base_of_another_image() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let base = support::Base::new(&store);
    let wanted = vec![ProcessSet { pid: 300, spans: vec![(4096, 8192)] }];
    let builder = ImageBuilder::new(&store, base.image(), support::record());
    let image = builder.working_set(wanted.clone()).finish().unwrap();
    let [state, set] = image.new_layers.as_slice() else { panic!("{:?}", image.new_layers) };
    let names = ["base", "state", "working-set"].map(|role| (role != "base").then_some(role));
    let roles = image.layers.iter().map(|layer| layer.annotations().as_ref()?.get(labels::ROLE).cloned());
    assert_eq!(roles.collect::<Vec<_>>().iter().map(Option::as_deref).collect::<Vec<_>>(), names);

    let files = files(&store, set);
    assert_eq!((files[0].0.as_str(), files[0].1), (".woodfrog/", 0o700));
    assert_eq!((files[1].0.as_str(), files[1].1), (labels::WORKING_SET_PATH, 0o600));
    let read = RecordedSet::read(files[1].2.as_slice()).unwrap();
    let record = self::files(&store, state).remove(2).2;
    assert_eq!((read.capture, read.processes), (sha256(&record), wanted));

    let manifest = serde_json::from_slice(&image.manifest).unwrap();
    let config = std::fs::read(store.path(image.config.digest().as_ref()).unwrap()).unwrap();
    let labelled = CheckpointLabels::of_config(&config).unwrap().unwrap();
    assert_eq!(labelled.memory_layers(&manifest), Vec::<&oci_spec::image::Descriptor>::new());
    let again = BaseImage::new(&image.manifest, &config).unwrap();
    assert_eq!(again.layers().len(), 1);
}

#[test]
fn the_base_s_config_is_kept_and_labelled() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let base = support::Base::new(&store);
    let image = support::build(&store, base.image());
    let before: Value = serde_json::from_slice(&base.config).unwrap();
    let after = config(&store, &image);
    for (key, value) in before["config"].as_object().unwrap() {
        if key != "Labels" {
            assert_eq!(after["config"][key], *value, "{key}");
        }
    }
    let labels = &after["config"]["Labels"];
    assert_eq!(labels["maintainer"], "shop");
    assert_eq!(labels[labels::FORMAT], "1");
    assert_eq!(labels[labels::ROOTFS_LAYERS], "1");
    assert_eq!(labels[labels::MEMORY_BYTES], "12000000");
    assert_eq!(after["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    let layers = after["history"].as_array().unwrap().iter().filter(|entry| entry["empty_layer"] != true);
    assert_eq!(layers.count(), 3);

    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    assert_eq!(manifest["annotations"][labels::FORMAT], "1");
    assert_eq!(manifest["layers"][0]["digest"], base.layer);
    let everything = format!("{after}{manifest}");
    assert!(!everything.contains("org.criu"), "containerd would restore it by itself");
}

#[test]
fn a_thawed_container_s_image_replaces_the_checkpoint_and_keeps_the_root_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let dumped = directory.path().join("dump");
    std::fs::create_dir(&dumped).unwrap();
    support::dump(&dumped);
    let build = |base, name: &str| {
        let upper = tempfile::tempdir().unwrap();
        std::fs::write(upper.path().join(name), name).unwrap();
        let mut builder = ImageBuilder::new(&store, base, support::record());
        builder.rootfs_diff(AsFd::as_fd(&open(upper.path())), &DiffOptions::default()).unwrap();
        builder.checkpoint_directory(&dumped).unwrap();
        builder.finish().unwrap()
    };
    let first = build(support::Base::new(&store).image(), "first");
    let first_config = serde_json::to_vec(&config(&store, &first)).unwrap();
    // The config's digest is that of its very bytes.
    let first_bytes = std::fs::read(store.path(first.config.digest().as_ref()).unwrap()).unwrap();
    assert_eq!(first_config.len(), first_bytes.len());
    let second = build(BaseImage::new(&first.manifest, &first_bytes).unwrap(), "second");
    let digests: Vec<_> = second.layers.iter().map(|layer| layer.digest().to_string()).collect();
    // Base, first diff, second diff, state, memory.
    assert_eq!(digests.len(), 5);
    assert_eq!(digests[..2], [first.layers[0].digest().to_string(), first.new_layers[0].digest.clone()]);
    let after = config(&store, &second);
    assert_eq!(after["config"]["Labels"][labels::ROOTFS_LAYERS], "3");
    assert_eq!(after["rootfs"]["diff_ids"].as_array().unwrap().len(), 5);
    let history = after["history"].as_array().unwrap();
    assert_eq!(history.iter().filter(|entry| entry["empty_layer"] != true).count(), 5);
    assert!(history.iter().any(|entry| entry["created_by"] == "CMD"), "{history:?}");
}

#[test]
fn an_empty_diff_makes_no_layer() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let upper = tempfile::tempdir().unwrap();
    std::fs::create_dir(upper.path().join(".woodfrog")).unwrap();
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    builder.rootfs_diff(AsFd::as_fd(&open(upper.path())), &DiffOptions::default()).unwrap();
    let image = builder.finish().unwrap();
    assert_eq!(image.new_layers.len(), 1, "only state");
}

#[test]
fn progress_reaches_the_size_of_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let dumped = tempfile::tempdir().unwrap();
    support::dump(dumped.path());
    std::fs::copy(dumped.path().join("pages-1.img"), dumped.path().join("pages-2.img")).unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&seen);
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record())
        .on_memory(Arc::new(move |bytes| {
            assert!(progress.swap(bytes, Ordering::Relaxed) <= bytes);
        }));
    builder.checkpoint_directory(dumped.path()).unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 24_000_000);
}

#[test]
fn of_a_page_file_only_what_is_to_be_kept_is_in_the_layer() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let dumped = tempfile::tempdir().unwrap();
    support::dump(dumped.path());
    let whole = std::fs::read(dumped.path().join("pages-1.img")).unwrap();
    let kept = BTreeMap::from([("pages-1.img".to_owned(), vec![(4096, 8192), (1_048_576, 4096)])]);
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    builder = builder.keep_only(kept);
    builder.checkpoint_directory(dumped.path()).unwrap();
    let image = builder.finish().unwrap();
    assert_eq!(image.record.memory[0].size, 12_288);
    let memory = files(&store, image.new_layers.last().unwrap());
    assert!(memory[2].2 == [&whole[4096..12_288], &whole[1_048_576..1_052_672]].concat());
}

/// Each in a directory of its own, with pages that appear before or after somebody follows them.
#[test]
fn memory_that_was_compressed_while_it_was_written_makes_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let build = |threads, follow: bool| {
        let dumped = tempfile::tempdir().unwrap();
        let compression = Compression { threads, ..Compression::default() };
        let ahead = Ahead::start(open(dumped.path()).into(), compression);
        support::dump(dumped.path());
        std::fs::copy(dumped.path().join("pages-1.img"), dumped.path().join("pages-10.img")).unwrap();
        // The second block is not whole, and the last is not as long as others.
        let kept = BTreeMap::from([("pages-1.img".to_owned(), vec![(0, 3 << 20), (4 << 20, 7_805_696)])]);
        let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record())
            .compression(compression)
            .keep_only(kept);
        if follow {
            while ahead.frames() < 10 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            builder = builder.ahead(ahead);
        }
        builder.checkpoint_directory(dumped.path()).unwrap();
        (std::fs::read(dumped.path().join("pages-1.img")).unwrap(), builder.finish().unwrap())
    };
    let (pages, image) = build(1, false);
    assert_eq!(image.digest, build(3, false).1.digest);
    assert_eq!(image.digest, build(2, true).1.digest);
    let kept = [&pages[..3 << 20], &pages[4 << 20..]].concat();
    for (layer, expected) in image.new_layers[1..].iter().zip([&kept, &pages]) {
        assert!(files(&store, layer)[2].2 == *expected);
        let blob = std::fs::read(store.path(&layer.digest).unwrap()).unwrap();
        assert_eq!((sha256(&blob), blob.len() as u64), (layer.digest.clone(), layer.size));
        let tar = zstd::decode_all(blob.as_slice()).unwrap();
        assert_eq!((sha256(&tar), tar.len() as u64), (layer.diff_id.clone(), layer.uncompressed));
    }
}

#[test]
fn a_page_file_that_is_shorter_than_its_page_map_says_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let dumped = tempfile::tempdir().unwrap();
    support::dump(dumped.path());
    let kept = BTreeMap::from([("pages-1.img".to_owned(), vec![(0, 4096), (11_997_184, 8192)])]);
    let mut builder =
        ImageBuilder::new(&store, support::Base::new(&store).image(), support::record()).keep_only(kept);
    let error = builder.checkpoint_directory(dumped.path()).unwrap_err();
    assert!(matches!(&error, BuildError::Changed { path } if path.ends_with("pages-1.img")), "{error:?}");
    assert_eq!(std::fs::read_dir(store.root().join("temporary")).unwrap().count(), 0);
}

#[test]
fn a_missing_page_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    let error = builder.memory(&["/nowhere/pages-7.img".into()]).unwrap_err();
    assert!(error.to_string().contains("/nowhere/pages-7.img"), "{error}");
}

#[test]
fn a_config_that_is_not_the_manifest_s_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = support::Base::new(&BlobStore::open(directory.path()).unwrap());
    let tampered = String::from_utf8(base.config.clone()).unwrap().replace("1000", "0000");
    let error = BaseImage::new(&base.manifest, tampered.as_bytes()).unwrap_err();
    assert!(matches!(error, BaseError::WrongConfig { .. }), "{error}");
}

#[test]
fn files_of_a_checkpoint_that_were_truncated_or_changed_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let image = support::build(&store, support::Base::new(&store).image());
    let unpacked = directory.path().join("unpacked");
    for layer in &image.new_layers {
        let blob = store.get(&layer.digest, layer.size).unwrap().unwrap();
        tar::Archive::new(zstd::Decoder::new(blob).unwrap()).unpack(&unpacked).unwrap();
    }
    let checkpoint = unpacked.join(".woodfrog/checkpoint");
    let check = || image.record.check_files(|name| std::fs::File::open(checkpoint.join(name)));
    check().unwrap();

    std::fs::write(checkpoint.join("core-300.img"), b"evil").unwrap();
    assert!(check().unwrap_err().to_string().contains("core-300.img is not what was frozen"));
    std::fs::write(checkpoint.join("core-300.img"), b"core").unwrap();

    std::fs::File::options()
        .write(true)
        .open(checkpoint.join("pages-1.img"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert!(check().unwrap_err().to_string().contains("pages-1.img has 1048576 bytes instead of 12000000"));
    std::fs::remove_file(checkpoint.join("inventory.img")).unwrap();
    assert!(matches!(check().unwrap_err(), FileError::Read { name, .. } if name == "inventory.img"));
}

#[test]
fn the_record_is_read_from_the_state_layer_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let image = support::build(&store, support::Base::new(&store).image());
    let [state, memory] = image.new_layers.as_slice() else { panic!() };
    let read = |layer: &Layer| record_in_layer(store.get(&layer.digest, layer.size).unwrap().unwrap());
    assert_eq!(read(state).unwrap(), image.record);
    assert!(matches!(read(memory).unwrap_err(), ReadError::Missing));
}

#[test]
fn a_volume_is_an_archive_of_the_state_layer() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path().join("store")).unwrap();
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("cache"), b"warm").unwrap();
    symlink("cache", volume.path().join("link")).unwrap();
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    let opened = open(volume.path());
    let source = VolumeSource {
        mount_path: "/tmp",
        kind: VolumeKind::EmptyDir,
        directory: AsFd::as_fd(&opened),
        cap: 1 << 20,
    };
    builder.volume(&source).unwrap();
    let image = builder.finish().unwrap();
    let recorded = &image.record.volumes[0];
    assert_eq!((recorded.mount_path.as_str(), recorded.archive.name.as_str()), ("/tmp", "volumes/0.tar"));
    let state = files(&store, &image.new_layers[0]);
    let archive = state.iter().find(|file| file.0 == ".woodfrog/checkpoint/volumes/0.tar").unwrap();
    assert_eq!(sha256(&archive.2), recorded.archive.digest);
    let target = tempfile::tempdir().unwrap();
    lay_out(archive.2.as_slice(), AsFd::as_fd(&open(target.path())), 1 << 20).unwrap();
    assert_eq!(std::fs::read(target.path().join("link")).unwrap(), b"warm");
    let mode = std::fs::metadata(volume.path().join("cache")).unwrap().permissions().mode();
    assert_eq!(std::fs::metadata(target.path().join("cache")).unwrap().permissions().mode(), mode);
}
