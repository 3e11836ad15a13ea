//! Whether a container can be managed, and the command that it would have run: pure decisions on the request.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_cri::v1::{ContainerConfig, CreateContainerRequest, LinuxContainerSecurityContext, NamespaceMode};
use woodfrog_protocol::paths;

use crate::images::Image;

/// Why a container that would be managed is passed unedited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it has a terminal (tty: true), which CRIU cannot take along")]
    Terminal,
    #[error("its process namespace is shared (shareProcessNamespace, hostPID or a debugging target)")]
    SharedPids,
    #[error("it runs in a user namespace")]
    UserNamespace,
    #[error("neither the request nor the image has a command")]
    NoCommand,
    #[error("its own mount at {0} is in the way")]
    Mount(String),
}

/// Names for the logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
}

impl Names {
    pub(crate) fn of(request: &CreateContainerRequest) -> Self {
        let sandbox = request.sandbox_config.as_ref().and_then(|s| s.metadata.clone()).unwrap_or_default();
        let container = request.config.as_ref().and_then(|c| c.metadata.clone()).unwrap_or_default();
        Self { namespace: sandbox.namespace, pod: sandbox.name, container: container.name }
    }
}

/// Whether the pod asks to be managed.
pub(crate) fn annotated(request: &CreateContainerRequest) -> bool {
    let sandbox = request.sandbox_config.as_ref();
    sandbox.and_then(|s| s.annotations.get(paths::MANAGED_ANNOTATION)).is_some_and(|value| value == "true")
}

/// What the pod says of how its containers stand by.
pub(crate) fn standby(request: &CreateContainerRequest) -> BTreeMap<String, String> {
    let annotations = request.sandbox_config.iter().flat_map(|sandbox| &sandbox.annotations);
    let said = annotations.filter(|(key, _)| paths::STANDBY.contains(&key.as_str()));
    said.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What speaks against managing this container.
pub(crate) fn check(request: &CreateContainerRequest, config: &ContainerConfig) -> Result<(), Refusal> {
    if config.tty {
        return Err(Refusal::Terminal);
    }
    let options = security(config).and_then(|s| s.namespace_options.as_ref());
    // Nothing said means POD, the first value: containerd then shares the sandbox's namespace.
    if options.map(|o| o.pid()) != Some(NamespaceMode::Container) {
        return Err(Refusal::SharedPids);
    }
    let sandbox = request.sandbox_config.as_ref().and_then(|s| s.linux.as_ref());
    let sandbox =
        sandbox.and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.as_ref());
    let users = |o: Option<&k8s_cri::v1::NamespaceOption>| {
        o.and_then(|o| o.userns_options.as_ref()).is_some_and(|u| u.mode() != NamespaceMode::Node)
    };
    if users(options) || users(sandbox) {
        return Err(Refusal::UserNamespace);
    }
    match config.mounts.iter().find(|m| in_the_way(Path::new(&m.container_path), m.readonly)) {
        Some(mount) => Err(Refusal::Mount(mount.container_path.clone())),
        None => Ok(()),
    }
}

/// Whether a mount leaves no room for the shim's own: it is at or below them, or above and cannot take a mount point.
fn in_the_way(path: &Path, readonly: bool) -> bool {
    [paths::CONTROL_DIR, paths::KDAT]
        .iter()
        .any(|own| path.starts_with(own) || (readonly && Path::new(own).starts_with(path)))
}

/// The security context, if the request has one.
pub(crate) fn security(config: &ContainerConfig) -> Option<&LinuxContainerSecurityContext> {
    config.linux.as_ref()?.security_context.as_ref()
}

/// The argument vector as containerd resolves it (`WithProcessArgs` in its `internal/cri/opts`), which is what
/// Kubernetes documents for `command` and `args`: a command replaces the image's entrypoint and command, arguments
/// alone replace the image's command.
pub(crate) fn argv(config: &ContainerConfig, image: &Image) -> Result<Vec<String>, Refusal> {
    let (command, args) = (&config.command, &config.args);
    let (entry, rest) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (&image.entrypoint, args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    // An entrypoint of one empty string is how image builders write that there is none.
    let entry: &[String] = if command.is_empty() && *entry == [""] { &[] } else { entry };
    let argv = [entry, rest].concat();
    if argv.first().is_none_or(String::is_empty) { Err(Refusal::NoCommand) } else { Ok(argv) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{LinuxContainerConfig, Mount, NamespaceOption, UserNamespace};

    fn strings(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn config() -> ContainerConfig {
        let namespaces =
            NamespaceOption { pid: NamespaceMode::Container as i32, ..NamespaceOption::default() };
        ContainerConfig {
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn the_command_is_the_one_that_containerd_would_run() {
        let image = Image { entrypoint: strings("/entry -e"), cmd: strings("cmd -c"), checkpoint: false };
        let run = |command, args| {
            let config =
                ContainerConfig { command: strings(command), args: strings(args), ..Default::default() };
            argv(&config, &image)
        };
        assert_eq!(run("", "").unwrap(), strings("/entry -e cmd -c"));
        assert_eq!(run("", "a b").unwrap(), strings("/entry -e a b"));
        assert_eq!(run("/c", "").unwrap(), strings("/c"));
        assert_eq!(run("/c", "a").unwrap(), strings("/c a"));
    }

    #[test]
    fn an_empty_entrypoint_is_none_and_no_command_is_refused() {
        let blank = Image { entrypoint: vec![String::new()], cmd: strings("cmd"), checkpoint: false };
        assert_eq!(argv(&ContainerConfig::default(), &blank).unwrap(), strings("cmd"));
        assert_eq!(argv(&ContainerConfig::default(), &Image::default()), Err(Refusal::NoCommand));
    }

    #[test]
    fn what_cannot_be_dumped_is_refused_by_name() {
        let request = CreateContainerRequest::default();
        assert_eq!(check(&request, &config()), Ok(()));
        assert_eq!(check(&request, &ContainerConfig { tty: true, ..config() }), Err(Refusal::Terminal));
        assert_eq!(check(&request, &ContainerConfig::default()), Err(Refusal::SharedPids));

        let mut users = config();
        let security = users.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options.as_mut().unwrap().userns_options = Some(UserNamespace::default());
        assert_eq!(check(&request, &users), Err(Refusal::UserNamespace));
    }

    #[test]
    fn mounts_in_the_way_are_refused_and_others_are_not() {
        let with = |path: &str, readonly| {
            let mount = Mount { container_path: path.into(), readonly, ..Mount::default() };
            check(&CreateContainerRequest::default(), &ContainerConfig { mounts: vec![mount], ..config() })
        };
        for (path, readonly) in
            [("/run/woodfrog", false), ("/run/woodfrog/x", false), ("/run", true), ("/", true)]
        {
            assert_eq!(with(path, readonly), Err(Refusal::Mount(path.into())), "{path}");
        }
        assert_eq!(with("/run", false), Ok(()));
        assert_eq!(with("/run/secrets", true), Ok(()));
    }
}
