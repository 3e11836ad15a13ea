//! What users want done in a container around a freeze or a thaw.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use woodfrog_image::Hook as RecordedHook;
use woodfrog_protocol::agent::Hook;
use woodfrog_protocol::{frame, paths};

use super::container::Container;
use super::http;
use super::runtime::Runtime;

/// Deadline of a hook that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Neither a command nor a path, or both.
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
    #[error("hook POST http://127.0.0.1:{port}{path}: {message}")]
    Http {
        /// Port in the container.
        port: u32,
        /// Path of the request.
        path: String,
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
    match (hook.exec.is_empty(), hook.http_path.is_empty()) {
        (false, true) => exec(runtime, id, &hook.exec, deadline).await,
        (true, false) => post(init, hook, deadline).await.map_err(|message| HookError::Http {
            port: hook.http_port,
            path: hook.http_path.clone(),
            message,
        }),
        _ => Err(HookError::Malformed),
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
    match http::send(init, port, request, deadline).await? {
        status if status.is_success() => Ok(()),
        status => Err(format!("answered {status}")),
    }
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

/// Runs the hook that kubelet wanted run while the container slept, if there is one. One that fails is noted; kubelet was told that
/// all is well.
pub async fn postponed(runtime: &dyn Runtime, container: &Container) {
    let hook = match take_postponed(&container.control(paths::HOOK)) {
        Ok(Some(hook)) => hook,
        Ok(None) => return,
        Err(e) => return container.note(format!("the hook that it slept through cannot be read: {e}")),
    };
    match run(runtime, &container.info.id, container.life().init, &hook).await {
        Ok(()) => container.note(format!("the hook that it slept through was run: {:?}", hook.exec)),
        Err(e) => container.note(format!("the hook that it slept through: {e}")),
    }
}

/// Takes it, so that the shim cannot take it back.
fn take_postponed(path: &Path) -> io::Result<Option<Hook>> {
    let taken = path.with_extension("taken");
    match fs::rename(path, &taken) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        renamed => renamed?,
    }
    let bytes = fs::read(&taken)?;
    fs::remove_file(&taken)?;
    frame::whole(&bytes).map(Some).map_err(io::Error::other)
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
