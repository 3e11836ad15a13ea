//! A container that tries to get its own code run by CRIU, which has more rights than it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::container::{COUNTER, Container, directory, toolchain};
use woodfrog_criu::{DumpOptions, Worker};

/// Traps laid in the mount namespace of the container: each leaves a mark when CRIU or its loader falls for it.
const TRAPS: &str = r##"
sub mounted { my ($what, $where, $kind, $flags) = @_; syscall(165, $what, $where, $kind, $flags, 0) == 0 or die "$where: $!" }
sub tmpfs { my ($path) = @_; system("mkdir", "-p", $path); mounted("none", $path, "tmpfs", 0) }
sub bound { my ($what, $where) = @_; mounted($what, $where, "none", 4096) }
sub written { my ($path, $text) = @_; open(my $f, ">", $path) or die "$path: $!"; print $f $text; chmod 0755, $path }

tmpfs("/trap");
# Any library will do: as a preload it shows in CRIU's mappings, and as a plugin it lacks what makes one, an error.
system("cp", glob("/lib/*-linux-gnu/libm.so.6"), "/trap/evil.so");
my %files = ("/etc/ld.so.preload" => "/trap/evil.so\n", "/etc/criu/default.conf" => "action-script /trap/script\n");
for my $path (keys %files) {
    my $own = "/trap/" . ($path =~ s/.*\///r);
    written($own, $files{$path});
    system("mkdir -p \$(dirname $path) && touch $path");
    bound($own, $path);
}
tmpfs("/usr/lib/criu");
system("cp", "/trap/evil.so", "/usr/lib/criu/");
# Programs that CRIU runs when it has no cache of kernel features, as here: /run is the container's own.
tmpfs("/run");
for my $name ("script", "iptables", "ip6tables", "ip", "nft") {
    written("/trap/$name", "#!/bin/sh\n> /trap/ran-$name\n");
    for my $path ("/usr/sbin/$name", "/usr/bin/$name") { bound("/trap/$name", $path) if -e $path }
}
"##;

#[tokio::test]
async fn node_criu_runs_and_reads_nothing_of_a_hostile_container() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = Container::prepared(TRAPS, COUNTER);
    source.count();
    let root = format!("/proc/{}/root", source.host_pid1);
    assert!(fs::exists(format!("{root}/usr/lib/criu/evil.so")).unwrap(), "the traps are laid");
    let mode = fs::metadata(format!("{root}/trap/iptables")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111);

    let images = tempfile::tempdir().unwrap();
    let mut setup = source.setup(images.path());
    let given = setup.give(directory(images.path()));
    let worker = Worker::spawn(toolchain, setup).await.unwrap();
    let maps = format!("/proc/{}/maps", worker.pid());
    let mut dump = worker.dump(given, &DumpOptions::new(300)).await.unwrap();
    assert!(dump.written(|| false).await.unwrap());

    let maps = fs::read_to_string(maps).unwrap();
    assert!(maps.contains("criu-loader"), "{maps}");
    assert!(!maps.contains("evil"), "the loader read the container's ld.so.preload: {maps}");
    for entry in fs::read_dir(format!("{root}/trap")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with("ran-"), "CRIU ran a program of the container: {name}");
    }
    dump.finish().await.unwrap();
}
