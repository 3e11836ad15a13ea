//! Excerpts of logs of CRIU 4.2.1 on Linux 6.18, each from a failure that was made on purpose.

use super::*;

fn check(log: &str, expected: &Cause) {
    assert_eq!(Cause::find(None, log), *expected, "in:\n{log}");
    assert_ne!(expected.category(), "unknown");
}

#[test]
fn a_dump_that_failed_for_a_descriptor_names_it() {
    check(
        r#"(00.030335) sid=300 pgid=300 pid=300
(00.030357) 
(00.030357) Dumping opened files (pid: 300)
(00.030358) ----------------------------------------
pie: 300: __fetched msg: 71 0 0
pie: 300: Error (criu/pie/parasite.c:588): send_fds failed (-22)
(00.030381) Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket
(00.030384) Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)
(00.030391) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.031179) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::IoUring { pid: Some(300) },
    );
    check(
        r#"(00.019905) Dumping path for 0 fd via self 19 [/dev/null]
(00.019938) 300 fdinfo 1: pos:                0 flags:                1/0
(00.019942) Dumping pipe 22 with id 0xa pipe_id 0x8e333
(00.019956) 300 fdinfo 2: pos:                0 flags:                1/0
(00.019970) 300 fdinfo 3: pos:                0 flags:           100000/0x1
(00.019975) Error (criu/files-ext.c:94): Can't dump file 3 of that type [20600] (chr 10:229)
(00.019984) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.020203) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Device { number: "10:229".to_owned(), fd: 3, pid: Some(300) },
    );
    check(
        r#"(00.052336) Dumping pipe 22 with id 0xc pipe_id 0x8ee8b
(00.052345) 300 fdinfo 2: pos:                0 flags:                1/0
(00.052362) 300 fdinfo 3: pos:                0 flags:           100000/0x1
(00.052371) Dumping path for 3 fd via self 24 [/usr/lib/x86_64-linux-gnu/libffi.so.8.5.0]
(00.052435) 300 fdinfo 4: pos:                0 flags:                2/0
(00.052448) Error (criu/files-ext.c:94): Can't dump file 4 of that type [600] (anon anon_inode:[perf_event])
(00.052459) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.052834) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::UnsupportedDescriptor { what: "anon_inode:[perf_event]".to_owned(), fd: 4, pid: Some(300) },
    );
    check(
        r#"(00.012128) 300 fdinfo 2: pos:                0 flags:                1/0
(00.012139) 300 fdinfo 3: pos:          0x30d40 flags:           100001/0x1
(00.012148) Dumping path for 3 fd via self 24 [/tmp/wf-ghost (deleted)]
(00.012149) Strip ' (deleted)' tag from './tmp/wf-ghost (deleted)'
(00.012150) Dumping ghost file for fd 24 id 0xb
(00.012151) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/wf-ghost of 200704 size, increase limit
(00.012158) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.012375) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::DeletedFile { path: "/tmp/wf-ghost".to_owned(), bytes: 200_704 },
    );
    check(
        r#"(00.016357) Dumping pipe 22 with id 0xc pipe_id 0x8f44e
(00.016368) 300 fdinfo 2: pos:                0 flags:                1/0
(00.016384) 300 fdinfo 3: pos:                0 flags:           100000/0x1
(00.016393) Dumping path for 3 fd via self 24 [/usr/lib/x86_64-linux-gnu/libffi.so.8.5.0]
(00.016451) 300 fdinfo 4: pos:                0 flags:                2/0x1
(00.016490) Error (criu/files-reg.c:1790): Can't lookup mount=175 for fd=4 path=/wf
(00.016500) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.016751) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::ForeignMount { path: "/wf".to_owned(), fd: 4, pid: Some(300) },
    );
}

#[test]
fn a_dump_that_failed_for_a_socket_names_it() {
    check(
        r#"(00.006942) inet: Dumping inet socket at 3
(00.006945) inet: 	Dumping: ino  0x8ce74 family AF_INET    type SOCK_STREAM    port     8080 state TCP_LISTEN       src_addr 127.0.0.1
(00.006949) inet: 	Dumped: family AF_INET    type SOCK_STREAM    proto IPPROTO_TCP      port 8080 state 0                src_addr 127.0.0.1
(00.006972) 300 fdinfo 4: pos:                0 flags:                2/0x1
(00.006976) sockets: Searching for socket 0x8ce7c family 2
(00.006977) Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.
(00.006988) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.007304) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Connection { inode: 0x8ce7c, addresses: None },
    );
    check(
        r#"(00.016474) 300 fdinfo 1: pos:                0 flags:                1/0
(00.016477) Dumping pipe 22 with id 0xa pipe_id 0x8e6b7
(00.016492) 300 fdinfo 2: pos:                0 flags:                1/0
(00.016505) 300 fdinfo 3: pos:                0 flags:                2/0x1
(00.016510) sockets: Searching for socket 0x8e73d family 2
(00.016512) Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 8e73d
(00.016513) Error (criu/sk-inet.c:186): inet: In-flight connections can be ignored with the --skip-in-flight option.
(00.016523) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.016782) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::ConnectionInFlight { inode: 0x8e73d },
    );
    check(
        r#"(00.015642) cg: All tasks in criu's cgroups. Nothing to dump.
(00.015644) unix: Dumping external sockets
(00.015646) unix: 	Dumping extern: ino 582804 peer_ino 582807 family    1 type    1 state  1 name /tmp/wf-ext.sock
(00.015650) unix: 	Dumped extern: id 0xf ino 582804 peer 0 type 2 state 10 name 17 bytes
(00.015652) unix: 	Runaway socket: ino 582804 peer_ino 582807 family    1 type    1 state  1 name /tmp/wf-ext.sock
(00.015652) Error (criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.
(00.015699) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::ExternalUnixSocket { path: Some("/tmp/wf-ext.sock".to_owned()), inode: 582804 },
    );
    check(
        r#"(00.014040) cg: All tasks in criu's cgroups. Nothing to dump.
(00.014042) unix: Dumping external sockets
(00.014043) unix: 	Dumping extern: ino 582159 peer_ino 582158 family    1 type    1 state  1 name null
(00.014047) unix: 	Dumped extern: id 0xf ino 582159 peer 0 type 2 state 10 name 0 bytes
(00.014049) unix: 	Runaway socket: ino 582159 peer_ino 582158 family    1 type    1 state  1 name null
(00.014050) Error (criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.
(00.014100) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::ExternalUnixSocket { path: None, inode: 582159 },
    );
    check(
        r#"(00.013975) Dumping path for 0 fd via self 19 [/dev/null]
(00.014000) 300 fdinfo 1: pos:                0 flags:                1/0
(00.014002) Dumping pipe 22 with id 0xa pipe_id 0x8e938
(00.014012) 300 fdinfo 2: pos:                0 flags:                1/0
(00.014024) 300 fdinfo 3: pos:                0 flags:                2/0x1
(00.014028) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 8e58e
(00.014030) Error (criu/sk-inet.c:139): inet: For Go programs, consider using "GODEBUG=multipathtcp=0" to disable MPTCP
(00.014037) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1
(00.014276) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::UnsupportedSocket {
            what: "protocol 262 of an IP socket (MPTCP; in Go programs GODEBUG=multipathtcp=0 turns it off)"
                .to_owned(),
        },
    );
}

#[test]
fn a_dump_that_failed_for_a_process_says_why() {
    check(
        r#"(00.002554) mnt: Inspecting sharing on 196 shared_id 0 master_id 0 (@./sys/fs/cgroup)
(00.002555) mnt: Inspecting sharing on 195 shared_id 0 master_id 0 (@./sys)
(00.002556) mnt: Inspecting sharing on 185 shared_id 0 master_id 0 (@./proc)
(00.002556) mnt: Inspecting sharing on 184 shared_id 0 master_id 0 (@./proc)
(00.002557) mnt: Inspecting sharing on 183 shared_id 0 master_id 0 (@./)
(00.002558) Error (criu/mount.c:753): mnt: 227:./work doesn't have a proper root mount
(00.002581) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Namespace { kind: "mnt".to_owned() },
    );
    check(
        r#"(00.049766) net: Dumping netns links
(00.049789) net: 	LD: Got link 1, type 772
(00.049792) net: The peer link is in the -1 netns with the 1 index
(00.055635) net/ipv6/conf/lo/stable_secret nr 200
(00.055788) net: 	Running ip addr save  
Error (criu/util.c:642): execvp("ip", ...) failed: No such file or directory
(00.061276) Error (criu/util.c:657): exited, status=1
(00.061306) Error (criu/net.c:2073): net: IP tool failed on addr save  
(00.063464) Error (criu/namespaces.c:1163): Namespaces dumping finished with error 65280
(00.067481) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Namespace { kind: "net".to_owned() },
    );
    check(
        r#"(00.001694) Collected (4 attempts, 0 in_progress)
(00.001702) Collected (4 attempts, 0 in_progress)
(00.001709) Collected 301 in 1 state
(00.001716) Collected (3 attempts, 0 in_progress)
(00.001720) Collected 300 in 1 state
(00.001794) Error (criu/namespaces.c:460): Can't dump nested pid namespace for 301
(00.001796) Error (criu/namespaces.c:700): Can't make pidns id
(00.001836) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Namespace { kind: "pid".to_owned() },
    );
    check(
        r#"(00.022709) Collected 300 in 1 state
(00.022780) Will take user namespace in the image
(00.022781) Add user ns 9 pid 300
(00.022788) net: Lock network
(00.025208) RPC NOTIFY query-ext-files: no `opts` returned.
(00.025678) Error (criu/namespaces.c:931): Unable to convert uid or gid
(00.028596) Error (criu/namespaces.c:997): One or more namespaces doesn't belong to the target user namespace
(00.028688) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Namespace { kind: "user".to_owned() },
    );
    check(
        r#"(00.030349) ----------------------------------------
(00.030351) Process: 300(300)
(00.030357) ----------------------------------------
(00.030378) cg: All tasks in criu's cgroups. Nothing to dump.
(00.030380) unix: Dumping external sockets
(00.030382) Error (criu/tty.c:410): tty: Found slave peer index 0 without correspond master peer
(00.035562) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::Terminal,
    );
    check(
        r#"(00.068258) Fetched ack: 64 64 0
(00.068263) 301 has 0 sched policy
(00.068264) 	dumping 0 nice for 301
(00.068267) dumping /proc/301/loginuid
(00.068276) dumping /proc/301/oom_score_adj
(00.068285) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted
(00.068288) Error (criu/cr-dump.c:1584): Dump core (pid: 301) failed with -1
(00.068744) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::ResourceLimits { pid: Some(301) },
    );
    check(
        r#"(00.002520) Detected cgroup V1 freezer
(00.002525) Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 77 (No such process)
(00.002537) net: Unlock network
(00.002543) Unfreezing tasks into 1
(00.002544) 	Unseizing 77 into 1
(00.002547) Error (compel/src/lib/infect.c:417): Unable to detach from 77: No such process
(00.002553) Error (criu/cr-dump.c:1975): Dumping FAILED."#,
        &Cause::NoProcess { pid: 77 },
    );
}

#[test]
fn a_restore_that_failed_for_the_container_says_what_is_different() {
    check(
        r#"(00.001114) Running pre-restore scripts
(00.001116) 	RPC
(00.001225) No pidns-1.img image
(00.001282) Forking task with 300 pid (flags 0x0)
(00.001284) Creating process using clone3()
(00.001555) Error (criu/cr-restore.c:1237): Can't fork for 300: File exists
(00.001583) Error (criu/cr-restore.c:2331): Restoring FAILED."#,
        &Cause::PidTaken { pid: 300 },
    );
    check(
        r#"(00.008074)    300: Found id pipe:[590098] (fd 1) in inherit fd list
(00.008075)    300: File pipe:[590098] will be restored from fd 1 dumped from inherit fd 1
(00.008089)    300: 		Create fd for 1
(00.008090)    300: 			Going to dup 1 into 2
(00.008092)    300: 	Receive fd for 2
(00.008099)    300: Error (criu/files-reg.c:2175): File tmp/wf-file has bad size 5 (expect 3)
(00.008102)    300: Error (criu/files.c:1221): Unable to open fd=3 id=0xb
(00.008562) Error (criu/cr-restore.c:2331): Restoring FAILED."#,
        &Cause::FileSize { path: "/tmp/wf-file".to_owned(), found: 5, expected: 3 },
    );
    check(
        r#"(00.005959)    300: File pipe:[590098] will be restored from fd 1 dumped from inherit fd 1
(00.005974)    300: 		Create fd for 1
(00.005975)    300: 			Going to dup 1 into 2
(00.005977)    300: 	Receive fd for 2
(00.005985)    300: File tmp/wf-file could only be validated with file size
(00.005986)    300: Error (criu/files-reg.c:2294): File tmp/wf-file has bad mode 0100400 (expect 0100644)
(00.005989)    300: Error (criu/files.c:1221): Unable to open fd=3 id=0xb
(00.007290) Error (criu/cr-restore.c:2331): Restoring FAILED."#,
        &Cause::FileMode {
            path: "/tmp/wf-file".to_owned(),
            found: "0100400".to_owned(),
            expected: "0100644".to_owned(),
        },
    );
    check(
        r#"(00.004823)    300: Found id pipe:[590098] (fd 1) in inherit fd list
(00.004825)    300: File pipe:[590098] will be restored from fd 1 dumped from inherit fd 1
(00.004840)    300: 		Create fd for 1
(00.004841)    300: 			Going to dup 1 into 2
(00.004843)    300: 	Receive fd for 2
(00.004863)    300: Error (criu/files-reg.c:2353): Can't open file tmp/wf-file on restore: No such file or directory
(00.004866)    300: Error (criu/files-reg.c:2267): Can't open file tmp/wf-file: No such file or directory
(00.004868)    300: Error (criu/files.c:1221): Unable to open fd=3 id=0xb
(00.005003) Error (criu/cr-restore.c:2331): Restoring FAILED."#,
        &Cause::FileGone { path: "/tmp/wf-file".to_owned(), reason: "No such file or directory".to_owned() },
    );
}

#[test]
fn a_restore_that_failed_for_the_image_says_what_is_broken() {
    check(
        r#"(00.001802) cpu: fpu: AVX-512 opmask                   xstate_offsets   1088 / 896    xstate_sizes     64 / 64    
(00.001803) cpu: fpu: AVX-512 Hi256                    xstate_offsets   1152 / 960    xstate_sizes    512 / 512   
(00.001804) cpu: fpu: AVX-512 ZMM_Hi256                xstate_offsets   1664 / 1472   xstate_sizes   1024 / 1024  
(00.001806) cpu: fpu: Protection Keys User registers   xstate_offsets   2688 / 2496   xstate_sizes      8 / 8     
(00.001946) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.002009) Error (criu/image.c:563): Magic doesn't match for inventory.img"#,
        &Cause::BrokenImage { what: "Magic doesn't match for inventory.img".to_owned() },
    );
    check(
        r#"(00.001177) cpu: fpu: AVX-512 opmask                   xstate_offsets   1088 / 896    xstate_sizes     64 / 64    
(00.001179) cpu: fpu: AVX-512 Hi256                    xstate_offsets   1152 / 960    xstate_sizes    512 / 512   
(00.001180) cpu: fpu: AVX-512 ZMM_Hi256                xstate_offsets   1664 / 1472   xstate_sizes   1024 / 1024  
(00.001181) cpu: fpu: Protection Keys User registers   xstate_offsets   2688 / 2496   xstate_sizes      8 / 8     
(00.001230) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.001299) Error (criu/protobuf.c:101): Failed unpacking object 0x7ffed68fb200 from /tmp/.tmplAr8pw/inventory.img"#,
        &Cause::BrokenImage {
            what: "Failed unpacking object 0x7ffed68fb200 from /tmp/.tmplAr8pw/inventory.img".to_owned(),
        },
    );
    check(
        r#"(00.001747) No apparmor.img image
(00.001751) No cgroup.img image
(00.001760) Running pre-restore scripts
(00.001761) 	RPC
(00.002163) No pidns-1.img image
(00.002198) Error (criu/protobuf.c:93): Read 1196 bytes while 2404 expected from /tmp/.tmplAr8pw/core-300.img: No such file or directory
(00.002204) Error (criu/cr-restore.c:2331): Restoring FAILED."#,
        &Cause::BrokenImage { what: "Read 1196 bytes while 2404 expected from /tmp/.tmplAr8pw/core-300.img: No such file or directory".to_owned() },
    );
    check(
        r#"(00.002027) No cgroup.img image
(00.002036) Running pre-restore scripts
(00.002038) 	RPC
(00.002450) No pidns-1.img image
(00.002456) No core-300.img image
(00.002457) Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)
(00.002461) Error (criu/cr-restore.c:2331): Restoring FAILED."#,
        &Cause::BrokenImage { what: "Unexpected EOF on (empty-image)".to_owned() },
    );
}

#[test]
fn a_processor_that_lacks_something_is_told_in_crius_words() {
    // Not made on purpose but composed: it takes two machines. The text is that of criu/arch/x86/cpu.c.
    check(
        "(00.001234) Error (criu/arch/x86/cpu.c:274): cpu: CPU xsave size mismatch (2696/832)",
        &Cause::Processor { what: "cpu: CPU xsave size mismatch (2696/832)".to_owned() },
    );
}

#[test]
fn an_unknown_failure_stays_unknown() {
    assert_eq!(Cause::find(None, "(00.1) Error (criu/new.c:1): something else"), Cause::Unknown);
    assert_eq!(Cause::find(None, ""), Cause::Unknown);
}

#[test]
fn crius_own_message_is_used_where_there_is_no_log() {
    let message = "Can't fork for 300: File exists";
    assert_eq!(Cause::find(Some(message), ""), Cause::PidTaken { pid: 300 });
}

#[test]
fn an_error_that_says_nothing_is_no_cause() {
    let log = "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: No space left on device";
    assert_eq!(Cause::find(None, log), Cause::Unknown);
}
