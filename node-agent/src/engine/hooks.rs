//! What users want done in a container around a freeze or a thaw.

use std::time::Duration;

use http_body_util::Full;
use hyper::header::CONTENT_LENGTH;
use hyper::{Request, StatusCode};
use woodfrog_image::Hook as RecordedHook;
use woodfrog_protocol::agent::{Get, Hook};

use super::container::Container;
use super::http::{self, Target};
use super::runtime::Runtime;

/// Deadline of a hook that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Not exactly one thing to do.
    #[error("a hook needs either a command or an HTTP path with a port")]
    Malformed,
    /// The command did not end with 0.
    #[error("hook {argv:?} ended with exit code {code}: {stderr}")]
    Exit {
        /// The command.
        argv: Vec<String>,
        /// Its exit code.
        code: i32,
        /// What it said.
        stderr: String,
    },
    /// The runtime could not run the command.
    #[error("hook {argv:?}: {source}")]
    Exec {
        /// The command.
        argv: Vec<String>,
        /// The runtime's words.
        source: super::runtime::RuntimeError,
    },
    /// The request failed.
    #[error("hook {request}: {message}")]
    Http {
        /// What was asked.
        request: String,
        /// What went wrong.
        message: String,
    },
}

/// Runs one hook in the container `id`, whose init is the process `init` on the host.
///
/// # Errors
/// It is malformed, fails, or takes too long.
pub async fn run(runtime: &dyn Runtime, id: &str, init: i32, hook: &Hook) -> Result<(), HookError> {
    let deadline = match hook.timeout_ms {
        0 => DEFAULT_TIMEOUT,
        ms => Duration::from_millis(ms.into()),
    };
    let failed = |message| HookError::Http { request: name(hook), message };
    match (hook.exec.is_empty(), hook.http_path.is_empty(), &hook.get) {
        (false, true, None) => exec(runtime, id, &hook.exec, deadline).await,
        (true, false, None) => post(init, hook, deadline).await.map_err(failed),
        (true, true, Some(request)) => get(init, request, deadline).await.map(drop).map_err(failed),
        _ => Err(HookError::Malformed),
    }
}

/// What a hook does, for people.
pub(super) fn name(hook: &Hook) -> String {
    match &hook.get {
        Some(Get { address, port, https, path, .. }) => {
            let address = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            format!("GET http{}://{address}:{port}{path}", if *https { "s" } else { "" })
        }
        None if hook.exec.is_empty() => format!("POST http://127.0.0.1:{}{}", hook.http_port, hook.http_path),
        None => format!("{:?}", hook.exec),
    }
}

async fn exec(runtime: &dyn Runtime, id: &str, argv: &[String], deadline: Duration) -> Result<(), HookError> {
    let output = runtime
        .exec(id, argv, deadline)
        .await
        .map_err(|source| HookError::Exec { argv: argv.to_vec(), source })?;
    match output.code {
        0 => Ok(()),
        code => Err(HookError::Exit { argv: argv.to_vec(), code, stderr: output.stderr }),
    }
}

async fn post(init: i32, hook: &Hook, deadline: Duration) -> Result<(), String> {
    let port = u16::try_from(hook.http_port).map_err(|_| "no such port".to_owned())?;
    let request = Request::post(&hook.http_path).body(Full::default()).map_err(|e| e.to_string())?;
    match http::send(init, Target::loopback(port), request, deadline).await? {
        status if status.is_success() => Ok(()),
        status => Err(format!("answered {status}")),
    }
}

/// As kubelet sent it. Whatever is answered, kubelet is content.
async fn get(init: i32, get: &Get, deadline: Duration) -> Result<StatusCode, String> {
    let address = get.address.parse().map_err(|_| "no such address".to_owned())?;
    let port = u16::try_from(get.port).map_err(|_| "no such port".to_owned())?;
    let mut request = Request::get(&get.path);
    // There is no body.
    for header in get.headers.iter().filter(|header| header.name != CONTENT_LENGTH.as_str()) {
        request = request.header(&header.name, &header.value[..]);
    }
    let request = request.body(Full::default()).map_err(|e| e.to_string())?;
    http::send(init, Target { address, port, https: get.https }, request, deadline).await
}

/// Runs the hooks after a restore (or after a dump, for the application that runs on), in reverse order: as what was
/// done before the checkpoint is undone. One that fails is noted; the application is there already.
pub async fn after_restore(runtime: &dyn Runtime, container: &Container, hooks: &[Hook]) {
    let init = container.life().init;
    for hook in hooks.iter().rev() {
        if let Err(e) = run(runtime, &container.info.id, init, hook).await {
            container.note(format!("after restore: {e}"));
        }
    }
}

/// A hook as the image records it.
pub fn recorded(hook: &Hook) -> RecordedHook {
    let timeout_seconds = hook.timeout_ms.div_ceil(1000);
    if hook.exec.is_empty() {
        RecordedHook::Http { port: hook.http_port as u16, path: hook.http_path.clone(), timeout_seconds }
    } else {
        RecordedHook::Exec { command: hook.exec.clone(), timeout_seconds }
    }
}

/// A hook that an image records, as it is run.
pub fn runnable(hook: &RecordedHook) -> Hook {
    match hook {
        RecordedHook::Exec { command, timeout_seconds } => {
            Hook { exec: command.clone(), timeout_ms: timeout_seconds * 1000, ..Hook::default() }
        }
        RecordedHook::Http { port, path, timeout_seconds } => Hook {
            http_path: path.clone(),
            http_port: (*port).into(),
            timeout_ms: timeout_seconds * 1000,
            ..Hook::default()
        },
    }
}
