//! Between the agent and those who ask it: the shim (what happens to containers) and the command `woodfrog`.
//!
//! One connection carries one [`Request`] at a time; the agent answers with any number of [`Progress`]
//! responses and one final response of another kind.

use prost::{Enumeration, Message, Oneof};
use serde::{Deserialize, Serialize};

pub use crate::init::Empty;

/// What is asked of the agent.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// The question.
    #[prost(oneof = "request::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub kind: Option<request::Kind>,
}

/// Kinds of [`Request`].
pub mod request {
    use super::*;
    /// The question.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Are you there? Answered with `Ok`.
        #[prost(message, tag = "1")]
        Ping(Empty),
        /// From the shim: a managed container was created. Answered with `Ok` once its init can connect.
        #[prost(message, tag = "2")]
        ContainerCreated(ContainerCreated),
        /// From the shim: tell when this started container is thawed, cold or dormant. Answered with `Started`.
        #[prost(message, tag = "3")]
        AwaitStart(Token),
        /// From the shim: kubelet stops this container. Answered with `Ok`.
        #[prost(message, tag = "4")]
        ContainerStopping(ContainerId),
        /// From the shim: kubelet removed this container. Answered with `Ok`.
        #[prost(message, tag = "5")]
        ContainerRemoved(ContainerId),
        /// From the command: the managed containers. Answered with `Containers`.
        #[prost(message, tag = "6")]
        List(Empty),
        /// From the command: freeze containers into images. Answered with `Frozen`.
        #[prost(message, tag = "7")]
        Freeze(FreezeRequest),
        /// From the command: what would make a freeze fail. Answered with `Checked`.
        #[prost(message, tag = "8")]
        Check(CheckRequest),
        /// From the command: what the agent did with a container, oldest first. Answered with `Log`.
        #[prost(message, tag = "9")]
        Log(ContainerName),
        /// From the command and the shim: wake this container. Answered with `Started` once it is awake.
        #[prost(message, tag = "10")]
        Wake(Wake),
        /// From the command: wake all that sleep. Answered with `Containers`, those that slept, once they are awake.
        #[prost(message, tag = "11")]
        WakeAll(WakeAll),
        /// From the command: take back what was meant for good. Answered with `Ok`.
        #[prost(message, tag = "12")]
        SleepAgain(Empty),
    }
}

/// What the agent answers.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// The answer.
    #[prost(oneof = "response::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub kind: Option<response::Kind>,
}

/// Kinds of [`Response`].
pub mod response {
    use super::*;
    /// The answer.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Done, nothing to say.
        #[prost(message, tag = "1")]
        Ok(Empty),
        /// Not done.
        #[prost(message, tag = "2")]
        Error(Error),
        /// More is to come.
        #[prost(message, tag = "3")]
        Progress(Progress),
        /// Answers `AwaitStart`.
        #[prost(message, tag = "4")]
        Started(Started),
        /// Answers `List`.
        #[prost(message, tag = "5")]
        Containers(Containers),
        /// Answers `Freeze`.
        #[prost(message, tag = "6")]
        Frozen(Frozen),
        /// Answers `Check`.
        #[prost(message, tag = "7")]
        Checked(Checked),
        /// Answers `Log`.
        #[prost(message, tag = "8")]
        Log(Log),
    }
}

/// See [`request::Kind::ContainerCreated`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ContainerCreated {
    /// Name of the control directory.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The runtime's ID of the container.
    #[prost(string, tag = "2")]
    pub container_id: String,
    /// Whether its image is a checkpoint image, by its labels.
    #[prost(bool, tag = "3")]
    pub checkpoint_image: bool,
}

/// Names a control directory.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Token {
    /// Name of the control directory.
    #[prost(string, tag = "1")]
    pub token: String,
}

/// Names a container by the runtime's ID.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ContainerId {
    /// The runtime's ID of the container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Names a container as people do.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ContainerName {
    /// The runtime's ID or an unambiguous beginning of it, the container's name, `POD/CONTAINER`, or
    /// `NAMESPACE/POD/CONTAINER`.
    #[prost(string, tag = "1")]
    pub container: String,
}

/// See [`request::Kind::Wake`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Wake {
    /// See [`ContainerName::container`].
    #[prost(string, tag = "1")]
    pub container: String,
    /// What for, in a few words.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Who asks.
    #[prost(enumeration = "WokenBy", tag = "3")]
    pub by: i32,
}

/// See [`request::Kind::WakeAll`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct WakeAll {
    /// None falls asleep any more until [`request::Kind::SleepAgain`], whatever becomes of this agent, and nothing is left of it before
    /// their packets. Answered once that is so.
    #[prost(bool, tag = "1")]
    pub for_good: bool,
}

/// Who asks for a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum WokenBy {
    /// The shim, before it runs a person's command in the container.
    Visit = 0,
    /// The command `woodfrog wake`.
    Command = 1,
}

/// Freeze containers together, each into an image of its own.
#[derive(Clone, PartialEq, Message)]
pub struct FreezeRequest {
    /// Which, and into what.
    #[prost(message, repeated, tag = "1")]
    pub targets: Vec<FreezeTarget>,
    /// What to do about established connections.
    #[prost(enumeration = "Connections", tag = "2")]
    pub connections: i32,
    /// End the application once the image is safe; otherwise it goes on.
    #[prost(bool, tag = "3")]
    pub stop: bool,
    /// Registries (`host:port`) that speak plain HTTP; loopback addresses always may.
    #[prost(string, repeated, tag = "4")]
    pub plain_http: Vec<String>,
    /// Contents of a docker `config.json` with credentials; empty: none.
    #[prost(string, tag = "5")]
    pub docker_config: String,
    /// Commands run in each container before the dump.
    #[prost(message, repeated, tag = "6")]
    pub before_checkpoint: Vec<Hook>,
    /// Commands run in each container after a restore, in reverse order.
    #[prost(message, repeated, tag = "7")]
    pub after_restore: Vec<Hook>,
    /// How thawed applications get their memory, unless their pods say otherwise.
    #[prost(enumeration = "Memory", tag = "8")]
    pub memory: i32,
    /// If the images are to say which memory is wanted first: how that is found out.
    #[prost(message, optional, tag = "9")]
    pub rehearsal: Option<Rehearsal>,
}

/// Once dumped, the containers are ended and thawed from what was dumped; then they are asked for this. They go on as thawed.
#[derive(Clone, PartialEq, Message)]
pub struct Rehearsal {
    /// One after the other.
    #[prost(message, repeated, tag = "1")]
    pub requests: Vec<HttpRequest>,
}

/// A request that is sent to a pod's loopback address, over plain HTTP.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct HttpRequest {
    /// The method; empty: `GET`.
    #[prost(string, tag = "1")]
    pub method: String,
    /// The port.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Path and query.
    #[prost(string, tag = "3")]
    pub path: String,
    /// Its headers.
    #[prost(message, repeated, tag = "4")]
    pub headers: Vec<Header>,
    /// Its body.
    #[prost(bytes = "vec", tag = "5")]
    pub body: Vec<u8>,
}

/// How a thawed application gets its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration, Serialize, Deserialize)]
#[repr(i32)]
pub enum Memory {
    /// Each has its own.
    Copied = 0,
    /// All that are thawed from an image on a node share what they do not write to.
    Shared = 1,
}

/// One container of a [`FreezeRequest`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct FreezeTarget {
    /// See [`ContainerName::container`].
    #[prost(string, tag = "1")]
    pub container: String,
    /// Reference of the image to push: `registry/repository:tag`.
    #[prost(string, tag = "2")]
    pub image: String,
}

/// Something that is done in a container around a freeze or a thaw: exactly one of `exec`, `http_path` and `get`.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct Hook {
    /// A command and its arguments; exit code 0 is success.
    #[prost(string, repeated, tag = "1")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// A path that is sent `POST` in the container's network namespace; 2xx is success.
    #[prost(string, tag = "2")]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub http_path: String,
    /// The port for `http_path`.
    #[prost(uint32, tag = "3")]
    #[serde(default)]
    pub http_port: u32,
    /// Deadline in milliseconds; 0: 30,000.
    #[prost(uint32, tag = "4")]
    #[serde(default)]
    pub timeout_ms: u32,
    /// A request of kubelet's; any answer is success.
    #[prost(message, optional, tag = "5")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get: Option<Get>,
}

/// A `GET` that kubelet has sent as a hook, to be sent once more.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct Get {
    /// The address that it went to.
    #[prost(string, tag = "1")]
    pub address: String,
    /// The port.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Over TLS; no certificate is verified.
    #[prost(bool, tag = "3")]
    pub https: bool,
    /// Path and query.
    #[prost(string, tag = "4")]
    pub path: String,
    /// All headers, `Host` among them.
    #[prost(message, repeated, tag = "5")]
    pub headers: Vec<Header>,
}

/// A header of a [`Get`].
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct Header {
    /// Its name, in lower case.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Hooks that are to be run, in this order.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Hooks {
    /// They.
    #[prost(message, repeated, tag = "1")]
    pub hooks: Vec<Hook>,
}

/// What a freeze does about established connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration, Serialize, Deserialize)]
#[repr(i32)]
pub enum Connections {
    /// The freeze is refused, naming the peers.
    Refuse = 0,
    /// They are closed in the image (the running application keeps them).
    Close = 1,
    /// They are kept in the image; a thaw works only at the same address.
    Keep = 2,
}

/// See [`request::Kind::Check`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct CheckRequest {
    /// See [`ContainerName::container`].
    #[prost(string, tag = "1")]
    pub container: String,
    /// What to do about established connections.
    #[prost(enumeration = "Connections", tag = "2")]
    pub connections: i32,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct Error {
    /// One of a bounded set of words, such as `preflight` or `registry`.
    #[prost(string, tag = "1")]
    pub category: String,
    /// A sentence that names what and why.
    #[prost(string, tag = "2")]
    pub message: String,
    /// More, a line each: every reason of a preflight, lines of CRIU's log.
    #[prost(string, repeated, tag = "3")]
    pub details: Vec<String>,
}

/// How far a freeze is.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct Progress {
    /// The container, as it was named in the request.
    #[prost(string, tag = "1")]
    pub container: String,
    /// The phase, such as `dump` or `push`.
    #[prost(string, tag = "2")]
    pub phase: String,
    /// Bytes done in this phase.
    #[prost(uint64, tag = "3")]
    pub done: u64,
    /// Bytes to do in this phase, 0 if unknown.
    #[prost(uint64, tag = "4")]
    pub total: u64,
    /// Digest of the image that is about to be pushed; empty in all other messages.
    #[prost(string, tag = "5")]
    pub digest: String,
}

/// How a container came to life.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Started {
    /// Thawed, cold or dormant.
    #[prost(enumeration = "Outcome", tag = "1")]
    pub outcome: i32,
    /// Why it was a cold start; empty otherwise.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// See [`Started`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Outcome {
    /// Not known.
    Unknown = 0,
    /// Restored from its image.
    Thawed = 1,
    /// Started from its command.
    Cold = 2,
    /// No process until something wakes it.
    Dormant = 3,
}

/// Answers [`request::Kind::List`].
#[derive(Clone, PartialEq, Message)]
pub struct Containers {
    /// In the order of their creation.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
    /// The images whose memory is in the page store.
    #[prost(message, repeated, tag = "2")]
    pub stored: Vec<StoredImage>,
}

/// An image in the node's page store.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct StoredImage {
    /// Digest of its manifest.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Bytes of memory that it takes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Some application on this node uses it.
    #[prost(bool, tag = "3")]
    pub used: bool,
    /// When it was last wanted, seconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "4")]
    pub wanted_unix: u64,
}

/// A managed container.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct Container {
    /// The runtime's ID.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name in its pod.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Name of its pod.
    #[prost(string, tag = "3")]
    pub pod: String,
    /// Namespace of its pod.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Reference of its image.
    #[prost(string, tag = "5")]
    pub image: String,
    /// `created`, `waiting`, `dormant`, `thawing`, `thawed`, `cold`, `freezing` or `exited`.
    #[prost(string, tag = "6")]
    pub state: String,
    /// Why it started cold though its image is a checkpoint image, or would start cold now; empty otherwise.
    #[prost(string, tag = "7")]
    pub reason: String,
    /// PID of its application on the host, 0 if none runs.
    #[prost(int32, tag = "8")]
    pub pid: i32,
    /// Generation of a thawed application, 0 otherwise.
    #[prost(uint64, tag = "9")]
    pub generation: u64,
    /// Duration of its thaw in milliseconds, 0 if it was not thawed.
    #[prost(double, tag = "10")]
    pub thaw_ms: f64,
    /// Phases of its thaw, in order.
    #[prost(message, repeated, tag = "11")]
    pub thaw_phases: Vec<Phase>,
    /// Resident memory of all its processes, in bytes.
    #[prost(uint64, tag = "12")]
    pub resident_bytes: u64,
    /// When the thaw began and when it ended, microseconds of CLOCK_MONOTONIC; 0 if it was not thawed.
    #[prost(uint64, tag = "13")]
    pub thaw_started_us: u64,
    /// See `thaw_started_us`.
    #[prost(uint64, tag = "14")]
    pub thaw_done_us: u64,
    /// Some of its memory is still to come from its image.
    #[prost(bool, tag = "15")]
    pub memory_pending: bool,
    /// How its memory came after its thaw; none before all of it is there, and if all came during the thaw.
    #[prost(message, optional, tag = "16")]
    pub memory: Option<MemoryReport>,
    /// How often it woke from being dormant.
    #[prost(uint64, tag = "17")]
    pub wakes: u64,
    /// It shares the memory of its image with others.
    #[prost(bool, tag = "18")]
    pub shares_memory: bool,
    /// What CRIU did in its thaw: in the phase `restore` it read its `images` and made the `tasks` with what they had, in the phase
    /// `resume` it stopped each of them where its own code begins (`catch`), and let them go (`release`).
    #[prost(message, repeated, tag = "19")]
    #[serde(default)]
    pub criu_steps: Vec<Phase>,
}

/// How the memory of a thawed application came.
#[derive(Clone, Copy, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Bytes that were brought.
    #[prost(uint64, tag = "1")]
    pub brought_bytes: u64,
    /// Faults that were answered.
    #[prost(uint64, tag = "2")]
    pub faults: u64,
    /// When 99 % was there, microseconds of CLOCK_MONOTONIC.
    #[prost(uint64, tag = "3")]
    pub nearly_us: u64,
    /// When all was there, likewise.
    #[prost(uint64, tag = "4")]
    pub complete_us: u64,
    /// CPU time of the pager, microseconds.
    #[prost(uint64, tag = "5")]
    pub cpu_us: u64,
    /// Bytes that were mapped from the page store instead.
    #[prost(uint64, tag = "6")]
    #[serde(default)]
    pub mapped_bytes: u64,
}

/// A phase and its duration.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct Phase {
    /// Name, such as `restore`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Duration in milliseconds.
    #[prost(double, tag = "2")]
    pub ms: f64,
}

/// Answers [`request::Kind::Freeze`].
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct Frozen {
    /// One a target, in the request's order.
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<FrozenImage>,
    /// The whole freeze in milliseconds, from the request to the last image pushed.
    #[prost(double, tag = "2")]
    pub total_ms: f64,
}

/// An image that a freeze made.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct FrozenImage {
    /// The container, as it was named in the request.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Reference of the image.
    #[prost(string, tag = "2")]
    pub image: String,
    /// Digest of its manifest.
    #[prost(string, tag = "3")]
    pub digest: String,
    /// Bytes of memory in it, uncompressed.
    #[prost(uint64, tag = "4")]
    pub memory_bytes: u64,
    /// Bytes of the layers that the freeze added, uncompressed.
    #[prost(uint64, tag = "5")]
    pub layer_bytes: u64,
    /// The same, compressed.
    #[prost(uint64, tag = "6")]
    pub compressed_bytes: u64,
    /// How long the application stood still, in milliseconds.
    #[prost(double, tag = "7")]
    pub standstill_ms: f64,
    /// Phases, in order.
    #[prost(message, repeated, tag = "8")]
    pub phases: Vec<Phase>,
    /// What a reader should know, such as files that changed while they were read.
    #[prost(string, repeated, tag = "9")]
    pub warnings: Vec<String>,
    /// Bytes of memory that the image says are wanted first; 0: it does not say.
    #[prost(uint64, tag = "10")]
    #[serde(default)]
    pub working_set_bytes: u64,
}

/// Answers [`request::Kind::Check`].
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct Checked {
    /// Every reason why a freeze would fail; none: it can be tried.
    #[prost(message, repeated, tag = "1")]
    pub findings: Vec<Finding>,
}

/// A reason why a freeze would fail.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct Finding {
    /// One of a bounded set of words, such as `io_uring` or `connection`.
    #[prost(string, tag = "1")]
    pub category: String,
    /// A sentence that names what and where.
    #[prost(string, tag = "2")]
    pub message: String,
    /// What to do about it.
    #[prost(string, tag = "3")]
    pub advice: String,
}

/// Answers [`request::Kind::Log`].
#[derive(Clone, PartialEq, Message)]
pub struct Log {
    /// Oldest first.
    #[prost(message, repeated, tag = "1")]
    pub lines: Vec<LogLine>,
}

/// Something that the agent did with a container.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "1")]
    pub unix_ms: u64,
    /// A sentence.
    #[prost(string, tag = "2")]
    pub message: String,
}
