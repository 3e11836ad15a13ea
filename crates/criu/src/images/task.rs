//! A process of a checkpoint with everything that belongs to it.

use super::checkpoint::PagesFile;
use super::messages::memory::Mm;
use super::messages::task::{Core, Creds, Fs, KobjIds, Pstree, TaskCore, ThreadCore};

/// What a process was doing when it was dumped (`task_state`; CRIU's other states are never in an image).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Runs.
    Alive,
    /// A zombie.
    Dead,
    /// Stopped by a signal.
    Stopped,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its line in the process tree: pid, parent, group, session, thread ids.
    pub entry: Pstree,
    /// Alive, dead or stopped.
    pub state: TaskState,
    /// Its leader's core, from `core-PID.img`. Of a zombie, only `tc` is there.
    pub core: Core,
    /// The other threads.
    pub threads: Vec<Thread>,
    /// What a process that is no zombie has.
    pub body: Option<Body>,
}

/// A thread other than the leader.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its id in the container.
    pub tid: u32,
    /// From `core-TID.img`.
    pub core: Core,
}

/// Address space, kernel objects, directories of a process.
#[derive(Clone, Debug)]
pub struct Body {
    /// From `ids-PID.img`.
    pub ids: KobjIds,
    /// From `mm-PID.img`.
    pub mm: Mm,
    /// From `fs-PID.img`.
    pub fs: Fs,
    /// From `pagemap-PID.img`.
    pub pages: PagesFile,
}

impl Task {
    /// Process id in the container.
    pub fn pid(&self) -> u32 {
        self.entry.pid
    }

    /// The name that `ps` shows.
    pub fn comm(&self) -> &str {
        &self.tc().comm
    }

    /// The process-wide part of the leader's core, which `Checkpoint::open` has made sure of.
    pub fn tc(&self) -> &TaskCore {
        self.core.tc.as_ref().expect("checked when the checkpoint was opened")
    }

    /// Thread id and thread part of each thread, the leader first; nothing for a zombie.
    pub fn thread_cores(&self) -> impl Iterator<Item = (u32, &ThreadCore)> {
        let leader = (self.pid(), &self.core);
        let others = self.threads.iter().map(|thread| (thread.tid, &thread.core));
        std::iter::once(leader)
            .chain(others)
            .filter_map(|(tid, core)| Some((tid, core.thread_core.as_deref()?)))
    }

    /// The leader's credentials; none for a zombie.
    pub fn creds(&self) -> Option<&Creds> {
        self.core.thread_core.as_ref()?.creds.as_ref()
    }
}

impl TaskState {
    pub(super) fn from_image(number: u32) -> Option<Self> {
        // compel's COMPEL_TASK_ALIVE 1, _DEAD 2, _STOPPED 3, _ZOMBIE 6.
        match number {
            1 => Some(Self::Alive),
            2 | 6 => Some(Self::Dead),
            3 => Some(Self::Stopped),
            _ => None,
        }
    }
}
