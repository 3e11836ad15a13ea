//! How an application gets warm before it is frozen, and what is done around the freeze and after each thaw.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// How the pod is warmed up: first readiness, then requests, then commands, then the application's own word, then rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmUp {
    /// Wait until the pod is ready, by its readiness probes. The default.
    #[serde(default = "yes")]
    pub readiness: bool,
    /// HTTP requests that the node's agent sends from within the pod, one entry after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub http: Vec<HttpRequest>,
    /// Commands that are run in the pod, one after the other, after the requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub exec: Vec<WarmUpExec>,
    /// Wait until the application says itself that it is warm, by POST /checkpoint on the socket /run/woodfrog/api.sock.
    #[serde(default)]
    pub signal: bool,
    /// How long the pod is left alone after all that, so that compilers and caches come to rest. Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<Duration>,
    /// How long all of the warm-up may take, after the pod has started; then the attempt has failed.
    #[serde(default = "ten_minutes")]
    pub timeout: Duration,
}

impl Default for WarmUp {
    fn default() -> Self {
        Self {
            readiness: true,
            http: Vec::new(),
            exec: Vec::new(),
            signal: false,
            settle: None,
            timeout: ten_minutes(),
        }
    }
}

/// HTTP requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRequest {
    /// The port on the pod's loopback address.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Path and query.
    #[serde(default = "slash")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("a path begins with /"))]
    pub path: String,
    /// The request's method.
    #[serde(default = "get")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']")
        .message("the method is one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))]
    pub method: String,
    /// Headers of the request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub headers: BTreeMap<String, String>,
    /// Body of the request, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub body: Option<String>,
    /// How many requests.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: i32,
    /// How many of them at the same time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub concurrency: i32,
    /// Status codes that count as success. Default: 200 to 299.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 100, max = 599)))]
    pub expected_status: Vec<i32>,
}

/// A command of the warm-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmUpExec {
    /// The container in which the command is run. Default: the first one that is frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// The command and its arguments, without a shell; exit code 0 is success.
    #[schemars(length(min = 1, max = 64))]
    pub command: Vec<String>,
}

/// What is done in every frozen container around the freeze and after each thaw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run in this order before the container is frozen. One that fails ends the attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub before_checkpoint: Vec<Hook>,
    /// Run in REVERSE order after each thaw, and after the freeze in an application that runs on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub after_restore: Vec<Hook>,
}

/// Something that is done in a container: exactly one of exec and http.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.exec) != has(self.http)")
    .message("a hook does exactly one thing: give it either exec or http, and write a second hook for the other"))]
pub struct Hook {
    /// A command in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// An HTTP POST to the container; a status of 200 to 299 is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpAction>,
    /// How long it may take.
    #[serde(default = "half_a_minute")]
    pub timeout: Duration,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecAction {
    /// The command and its arguments, without a shell; exit code 0 is success.
    #[schemars(length(min = 1, max = 64))]
    pub command: Vec<String>,
}

/// An HTTP POST.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct HttpAction {
    /// The port on the pod's loopback address.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Path and query.
    #[serde(default = "slash")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("a path begins with /"))]
    pub path: String,
}

fn yes() -> bool {
    true
}

fn one() -> i32 {
    1
}

fn slash() -> String {
    "/".to_owned()
}

fn get() -> String {
    "GET".to_owned()
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}
