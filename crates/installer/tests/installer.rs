//! Installing, upgrading and uninstalling on a host in a directory; each step fails once.
#![forbid(unsafe_code)]

mod support;

use std::fs;

use support::{Break, CONFIG, CriServer, Fixture};
use woodfrog_installer::kubelet::Mode;
use woodfrog_installer::record::{PATH, Record};
use woodfrog_installer::{Error, Uninstall, Uninstalled, install, uninstall};

const SHIM_LINE: &str = "containerRuntimeEndpoint: unix:///run/woodfrog/cri.sock\n";

#[test]
fn an_installation_puts_the_shim_between_kubelet_and_containerd() {
    let mut host = Fixture::new();
    let done = host.install().unwrap();
    assert_eq!(done.changed, ["binaries", "version", "unit", "shim", "kubelet"]);
    assert!(host.read("/var/lib/kubelet/config.yaml").contains(SHIM_LINE));
    let unit = host.read("/etc/systemd/system/woodfrog-shim.service");
    assert!(
        unit.contains(
            "/opt/woodfrog/current/node-agent cri-shim --runtime /run/containerd/containerd.sock\n"
        )
    );
    for program in ["node-agent", "woodfrog", "woodfrog-init", "woodfrog-pager"] {
        assert_eq!(host.read(&format!("/opt/woodfrog/current/{program}")), format!("{program} 1"));
    }
    let status = host.status();
    assert!(status.agrees && status.answers && status.enabled, "{status:?}");
    assert_eq!(status.version.as_deref(), Some(done.version.as_str()));
}

#[test]
fn a_second_installation_changes_and_restarts_nothing() {
    let mut host = Fixture::new();
    host.install().unwrap();
    let (before, calls) = (host.snapshot(), host.systemd.calls.len());
    assert!(host.install().unwrap().changed.is_empty());
    assert_eq!(host.snapshot(), before);
    assert_eq!(host.systemd.calls.len(), calls, "{:?}", host.systemd.calls);
}

#[test]
fn containers_may_sleep_again_where_woodfrog_is_installed_again() {
    let mut host = Fixture::new();
    host.install().unwrap();
    host.uninstall().unwrap();
    host.write("/var/lib/woodfrog/wide-awake", "said by the agent");
    host.install().unwrap();
    assert!(!host.path("/var/lib/woodfrog/wide-awake").exists());
}

#[test]
fn an_upgrade_replaces_the_shim_and_leaves_kubelet_alone() {
    let mut host = Fixture::new();
    host.install().unwrap();
    host.systemd.calls.clear();
    host.release("2");
    assert_eq!(host.install().unwrap().changed, ["binaries", "version", "shim"]);
    assert_eq!(host.systemd.calls, ["restart woodfrog-shim.service"]);
    assert_eq!(host.read("/opt/woodfrog/current/node-agent"), "node-agent 2");
    assert!(host.read("/var/lib/kubelet/config.yaml").contains(SHIM_LINE));
}

#[test]
fn uninstalling_leaves_the_host_as_it_was() {
    let mut host = Fixture::new();
    let before = host.snapshot();
    host.install().unwrap();
    host.write("/run/woodfrog/containers/0123456789abcdef0123456789abcdef/command.bin", "x");
    assert_eq!(host.uninstall().unwrap(), Uninstalled::Done { in_use: vec![] });
    assert_eq!(host.snapshot(), before);
    assert_eq!(host.read("/var/lib/kubelet/config.yaml"), CONFIG);
    // The control directories of containers that run on.
    assert!(host.path("/run/woodfrog/containers/0123456789abcdef0123456789abcdef/command.bin").exists());
    assert!(!host.path(PATH).exists());
    assert_eq!(host.uninstall().unwrap(), Uninstalled::Nothing);
    assert!(host.status().agrees);
}

#[test]
fn binaries_that_a_container_runs_stay_until_it_ends() {
    let mut host = Fixture::new();
    let version = host.install().unwrap().version;
    let init = format!("/opt/woodfrog/{version}/woodfrog-init");
    fs::create_dir_all(host.path("/proc/77")).unwrap();
    std::os::unix::fs::symlink(host.path(&init), host.path("/proc/77").join("exe")).unwrap();
    assert_eq!(host.uninstall().unwrap(), Uninstalled::Done { in_use: vec![version] });
    assert!(host.path(&init).exists());
    fs::remove_dir_all(host.path("/proc/77")).unwrap();
    host.uninstall().unwrap();
    assert!(!host.path("/opt/woodfrog").exists());
}

#[test]
fn old_versions_go_once_nothing_runs_them_but_for_the_last() {
    let mut host = Fixture::new();
    let versions: Vec<String> = ["1", "2", "3"]
        .iter()
        .map(|build| {
            host.release(build);
            host.install().unwrap().version
        })
        .collect();
    let there: Vec<bool> =
        versions.iter().map(|version| host.path(&format!("/opt/woodfrog/{version}")).exists()).collect();
    assert_eq!(there, [false, true, true]);
}

/// What stands in the way of a step, so that it fails.
fn obstruct(host: &mut Fixture, step: &str) {
    // A directory that is not empty can be neither written nor replaced by a file, not even by root.
    let block = |host: &Fixture, path: &str| host.write(&format!("{path}/in-the-way"), "");
    match step {
        "binaries" => host.write("/opt/woodfrog", "a file"),
        "current" => block(host, "/opt/woodfrog/current.woodfrog-new"),
        "unit" => block(host, "/etc/systemd/system/woodfrog-shim.service.woodfrog-new"),
        "reload" => host.systemd.broken = Break::Reload,
        "enable" => host.systemd.broken = Break::Enable,
        "restart shim" => host.systemd.broken = Break::RestartShim,
        "shim answers" => host.systemd.broken = Break::ShimIsSilent,
        "record" => block(host, "/var/lib/woodfrog/installer.json.woodfrog-new"),
        "kubelet's file" => block(host, "/var/lib/kubelet/config.yaml.woodfrog-new"),
        "restart kubelet" => host.systemd.broken = Break::RestartKubelet,
        "kubelet stays" => host.systemd.broken = Break::KubeletDiesOfShim,
        _ => unreachable!("{step}"),
    }
}

#[test]
fn whatever_step_of_an_installation_fails_the_host_is_as_before() {
    for step in [
        "binaries",
        "current",
        "unit",
        "reload",
        "enable",
        "restart shim",
        "shim answers",
        "record",
        "kubelet's file",
        "restart kubelet",
        "kubelet stays",
    ] {
        let mut host = Fixture::new();
        obstruct(&mut host, step);
        let before = host.snapshot();
        let error = host.install().expect_err(step);
        assert!(!matches!(error, Error::NotRolledBack { .. }), "{step}: {error}");
        assert_eq!(host.snapshot(), before, "{step}: {error}");
        assert_eq!(host.read("/var/lib/kubelet/config.yaml"), CONFIG, "{step}");
    }
}

#[test]
fn whatever_step_of_an_upgrade_fails_the_old_release_runs_on() {
    for step in ["current", "restart shim", "shim answers"] {
        let mut host = Fixture::new();
        let version = host.install().unwrap().version;
        obstruct(&mut host, step);
        let before = host.snapshot();
        host.systemd.calls.clear();
        host.release("2");
        let error = host.install().expect_err(step);
        assert_eq!(host.snapshot(), before, "{step}: {error}");
        let status = host.status();
        assert!(status.agrees && status.version == Some(version), "{step}: {status:?}");
        assert!(!host.systemd.calls.contains(&"restart kubelet.service".to_owned()), "{step}");
    }
}

#[test]
fn a_unit_that_changes_with_an_upgrade_is_put_back_with_it() {
    let mut host = Fixture::new();
    host.install().unwrap();
    host.write("/etc/systemd/system/woodfrog-shim.service", "# of an older release\n");
    for step in ["unit", "reload"] {
        let before = host.snapshot();
        host.release("2");
        obstruct(&mut host, step);
        if step == "unit" {
            // The obstacle itself is in a directory that is compared.
            assert!(host.install().is_err());
            fs::remove_dir_all(host.path("/etc/systemd/system/woodfrog-shim.service.woodfrog-new")).unwrap();
        } else {
            assert!(host.install().is_err());
        }
        assert_eq!(host.snapshot(), before, "{step}");
    }
}

#[test]
fn an_uninstallation_that_takes_kubelet_down_leaves_it_with_the_shim() {
    let mut host = Fixture::new();
    host.install().unwrap();
    let before = host.snapshot();
    host.systemd.calls.clear();
    host.systemd.broken = Break::KubeletDiesOfRuntime;
    assert!(matches!(host.uninstall(), Err(Error::KubeletDown { .. })));
    assert_eq!(host.snapshot(), before);
    assert!(host.status().agrees);
}

#[test]
fn a_runtime_that_does_not_answer_is_nothing_to_go_back_to() {
    let mut host = Fixture::new();
    host.install().unwrap();
    let before = host.snapshot();
    host.containerd = None;
    assert!(matches!(host.uninstall(), Err(Error::Runtime { .. })));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn the_end_of_a_release_that_was_upgraded_is_no_uninstallation() {
    let mut host = Fixture::new();
    let old = host.release("1");
    host.install().unwrap();
    let kept = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&old).unwrap().flatten() {
        fs::copy(entry.path(), kept.path().join(entry.file_name())).unwrap();
    }
    host.release("2");
    let version = host.install().unwrap().version;
    let before = host.snapshot();
    let options = Uninstall { only: Some(kept.path().to_owned()), kubelet_is_back: false };
    assert_eq!(
        uninstall(&mut host.host(), &options, &mut || Ok(())).unwrap(),
        Uninstalled::Upgraded { version }
    );
    assert_eq!(host.snapshot(), before);
    let options = Uninstall { only: Some(host.release("2")), kubelet_is_back: false };
    assert!(matches!(
        uninstall(&mut host.host(), &options, &mut || Ok(())).unwrap(),
        Uninstalled::Done { .. }
    ));
}

#[test]
fn an_installation_that_was_killed_before_kubelets_restart_is_finished_by_the_next() {
    let mut host = Fixture::new();
    host.install().unwrap();
    // As it is between the change of kubelet's file and its restart.
    let text = host.read(PATH).replace("\"settled\": true", "\"settled\": false");
    host.write(PATH, &text);
    host.systemd.calls.clear();
    host.install().unwrap();
    assert_eq!(host.systemd.calls, ["restart kubelet.service"]);
    host.systemd.calls.clear();
    host.install().unwrap();
    assert!(host.systemd.calls.is_empty());
}

#[test]
fn what_kubeadm_overwrites_is_set_again() {
    let mut host = Fixture::new();
    host.install().unwrap();
    let other = CONFIG.replace("maxPods: 60", "maxPods: 70");
    host.write("/var/lib/kubelet/config.yaml", &other);
    let status = host.status();
    assert!(
        !status.agrees && status.problems[0].contains("kubelet does not go through the shim"),
        "{status:?}"
    );
    assert_eq!(host.install().unwrap().changed, ["kubelet"]);
    assert!(host.status().agrees);
    host.uninstall().unwrap();
    assert_eq!(host.read("/var/lib/kubelet/config.yaml"), other);
}

#[test]
fn endpoints_in_flags_and_drop_ins_come_back_too() {
    let flags = "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2\"\n";
    let mut host = Fixture::new();
    host.write("/var/lib/kubelet/kubeadm-flags.env", flags);
    let before = host.snapshot();
    host.install().unwrap();
    assert!(
        host.read("/var/lib/kubelet/kubeadm-flags.env").contains("=unix:///run/woodfrog/cri.sock --v=2\"")
    );
    host.uninstall().unwrap();
    assert_eq!(host.snapshot(), before);

    let mut host = Fixture::new();
    host.write("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubernetes/kubelet.conf.d\n");
    let before = host.snapshot();
    host.install().unwrap();
    assert!(host.read("/etc/kubernetes/kubelet.conf.d/99-woodfrog.conf").ends_with(SHIM_LINE));
    host.uninstall().unwrap();
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_kubelet_that_does_not_run_yet_is_not_started() {
    let mut host = Fixture::new();
    woodfrog_installer::Init::stop(&mut host.systemd, woodfrog_installer::KUBELET_UNIT).unwrap();
    host.systemd.calls.clear();
    host.install().unwrap();
    assert!(!host.systemd.calls.contains(&"restart kubelet.service".to_owned()));
    assert!(host.status().agrees);
}

#[test]
fn an_installation_that_takes_kubelet_down_is_not_tried_for_ever() {
    let mut host = Fixture::new();
    for _ in 0..3 {
        host.systemd.broken = Break::KubeletDiesOfShim;
        let error = host.install().unwrap_err();
        assert!(matches!(error, Error::KubeletDown { .. }), "{error}");
    }
    assert!(host.status().problems[0].contains("was rolled back"));
    host.systemd.broken = Break::Nothing;
    host.systemd.calls.clear();
    assert!(matches!(host.install(), Err(Error::GivenUp { attempts: 3, .. })));
    assert!(host.systemd.calls.is_empty());
    let again = woodfrog_installer::Install { again: true, ..host.options() };
    install(&mut host.host(), &again).unwrap();
    assert!(host.status().agrees);
    assert_eq!(Record::read(&host.host().root).unwrap().unwrap().failure, None);
}

#[test]
fn what_stands_against_it_is_found_before_anything_is_changed() {
    let mut host = Fixture::new();
    let before = host.snapshot();
    host.containerd = None;
    assert!(matches!(host.install(), Err(Error::Runtime { .. })));
    host.containerd = Some(CriServer::start(host.path("/run/containerd/containerd.sock"), "cri-o"));
    assert!(matches!(host.install(), Err(Error::OtherRuntime { name, .. }) if name == "cri-o"));
    let from = host.options().from;
    fs::remove_file(from.join("woodfrog-init")).unwrap();
    assert!(matches!(host.install(), Err(Error::NoBinary { .. })));
    host.release("1");
    fs::remove_file(host.path("/var/lib/kubelet/kubeadm-flags.env")).unwrap();
    assert!(matches!(host.install(), Err(Error::Unsupported { .. })));
    fs::remove_dir_all(host.path("/run/systemd")).unwrap();
    assert!(matches!(host.install(), Err(Error::NoSystemd { .. })));
    host.write("/run/systemd/system/x", "");
    host.write("/var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS=\"--v=2\"\n");
    assert_eq!(host.snapshot(), before);
    assert!(host.systemd.calls.is_empty(), "{:?}", host.systemd.calls);
}

#[test]
fn nothing_is_changed_while_containers_sleep() {
    let mut host = Fixture::new();
    host.install().unwrap();
    let before = host.snapshot();
    let mut refuses = || Err("shop/web/app sleeps".to_owned());
    let refused = uninstall(&mut host.host(), &Uninstall::default(), &mut refuses);
    assert!(matches!(refused, Err(Error::Asleep { .. })));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_kubelet_that_is_pointed_by_hand_keeps_its_shim_until_it_is_pointed_back() {
    let mut host = Fixture::new();
    let options = woodfrog_installer::Install { kubelet: Mode::ByHand, ..host.options() };
    install(&mut host.host(), &options).unwrap();
    assert_eq!(host.read("/var/lib/kubelet/config.yaml"), CONFIG);
    assert!(host.status().agrees);
    assert!(matches!(host.uninstall(), Err(Error::ByHand)));
    let options = Uninstall { kubelet_is_back: true, only: None };
    assert!(matches!(
        uninstall(&mut host.host(), &options, &mut || Ok(())).unwrap(),
        Uninstalled::Done { .. }
    ));
}

#[test]
fn what_was_changed_before_it_was_to_be_done_by_hand_is_still_undone() {
    let mut host = Fixture::new();
    let before = host.snapshot();
    host.install().unwrap();
    let options = woodfrog_installer::Install { kubelet: Mode::ByHand, ..host.options() };
    assert!(install(&mut host.host(), &options).unwrap().changed.is_empty());
    host.uninstall().unwrap();
    assert_eq!(host.snapshot(), before);
}

#[test]
fn two_installers_do_not_work_at_once() {
    use rustix::fs::{FlockOperation, flock};
    let mut host = Fixture::new();
    let lock = fs::File::create(host.path("/run/woodfrog-installer.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert!(matches!(host.install(), Err(Error::Busy { .. })));
    drop(lock);
    host.install().unwrap();
}
