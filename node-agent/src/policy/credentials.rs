//! User ids, groups, capabilities, no-new-privileges, securebits of every thread.

use woodfrog_criu::images::Checkpoint;
use woodfrog_criu::images::messages::task::Creds;

use super::capability::CapSet;
use super::requirement::SAME_USER;
use super::target::Target;
use super::violation::{Report, TAMPERED, process};

/// `SECBIT_KEEP_CAPS`, which any process may set; the other bits need CAP_SETPCAP.
const KEEP_CAPS: u32 = 1 << 4;
/// All of `linux/securebits.h`.
const SECUREBITS: u32 = 0xff;

const DROP: &str =
    "add the capability to the container's securityContext, or freeze a container that has no more";

pub(super) fn judge(images: &Checkpoint, target: &Target, report: &mut Report) {
    for task in &images.tasks {
        let who = process(task);
        for (_, thread) in task.thread_cores() {
            match &thread.creds {
                Some(creds) => judge_creds(&who, creds, target, report),
                None => report.refuse(&who, "creds", "missing", "the credentials of every thread", TAMPERED),
            }
        }
    }
}

fn judge_creds(who: &str, creds: &Creds, target: &Target, report: &mut Report) {
    let uids = [("uid", creds.uid), ("euid", creds.euid), ("suid", creds.suid), ("fsuid", creds.fsuid)];
    for (field, uid) in uids {
        let allowed = || format!("PID 1's user ids {:?}, or any with cap_setuid", target.uids);
        report.require(target.may_be_uid(uid), who, field, uid, allowed(), SAME_USER);
    }
    // A group that PID 1 merely has may not become a real or saved one without the right to change groups.
    let any_group = target.permitted.has(CapSet::SETGID);
    let gids = [("gid", creds.gid), ("egid", creds.egid), ("sgid", creds.sgid), ("fsgid", creds.fsgid)];
    for (field, gid) in gids {
        let allowed = || format!("PID 1's group ids {:?}, or any with cap_setgid", target.gids);
        report.require(any_group || target.gids.contains(&gid), who, field, gid, allowed(), SAME_USER);
    }
    // Leaving a group is a privilege as well: files can be closed to a group.
    let sorted = |groups: &[u32]| {
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        groups.dedup();
        groups
    };
    let same = any_group || sorted(&creds.groups) == sorted(&target.groups);
    let allowed = format!("PID 1's groups {:?}, or any with cap_setgid", target.groups);
    report.require(same, who, "groups", format!("{:?}", creds.groups), allowed, SAME_USER);

    judge_capabilities(who, creds, target, report);

    if target.no_new_privs {
        let kept = creds.no_new_privs == Some(1);
        let advice = "freeze it in a container with allowPrivilegeEscalation: false";
        report.require(kept, who, "no_new_privs", creds.no_new_privs.unwrap_or(0), "1, as PID 1 has", advice);
    }
    report.require(
        creds.no_new_privs.unwrap_or(0) <= 1,
        who,
        "no_new_privs",
        "no boolean",
        "0 or 1",
        TAMPERED,
    );
    let free = if target.permitted.has(CapSet::SETPCAP) { SECUREBITS } else { KEEP_CAPS };
    let value = format!("{:#x}", creds.secbits);
    report.require(creds.secbits & !free == 0, who, "secbits", value, format!("bits of {free:#x}"), DROP);
}

fn judge_capabilities(who: &str, creds: &Creds, target: &Target, report: &mut Report) {
    let reach = target.reach();
    let sets = [
        ("cap_prm", &creds.cap_prm, reach),
        ("cap_eff", &creds.cap_eff, reach),
        ("cap_amb", &creds.cap_amb, reach),
        // Executing a program cannot turn an inheritable capability outside the bounding set into a permitted one
        // unless it is inheritable for PID 1 too.
        ("cap_inh", &creds.cap_inh, reach | target.inheritable),
        ("cap_bnd", &creds.cap_bnd, target.bounding),
    ];
    for (field, words, allowed) in sets {
        match CapSet::from_words(words) {
            Some(set) => {
                let beyond = set.beyond(allowed);
                report.require(beyond.is_empty(), who, field, beyond, allowed, DROP);
            }
            // CRIU takes a set that is not there as empty, but a dump always has it.
            None => report.refuse(who, field, format!("{} words", words.len()), "two words", TAMPERED),
        }
    }
}
