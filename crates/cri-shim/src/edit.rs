//! The changes to a `CreateContainer` request, made on its bytes.
//!
//! Field numbers: `pkg/apis/runtime/v1/api.proto` of kubernetes/cri-api.

use k8s_cri::v1::{Mount, SecurityProfile, security_profile::ProfileType};
use prost::Message;

use crate::wire::{self, WireError};

/// `CreateContainerRequest.config`.
const CONFIG: u32 = 2;
/// Fields of `ContainerConfig`.
const COMMAND: u32 = 3;
const ARGS: u32 = 4;
const MOUNTS: u32 = 7;
const ANNOTATIONS: u32 = 10;
const LINUX: u32 = 15;
/// `LinuxContainerConfig.security_context`.
const SECURITY_CONTEXT: u32 = 2;
/// `LinuxContainerSecurityContext.seccomp`.
const SECCOMP: u32 = 15;

/// What a managed container gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Edit {
    /// Replaces command and arguments.
    pub(crate) command: String,
    /// Added to the mounts.
    pub(crate) mounts: Vec<Mount>,
    /// Added to the annotations; the last of a key counts.
    pub(crate) annotation: (String, String),
    /// Path of a seccomp profile on the node, in place of none.
    pub(crate) seccomp: Option<String>,
}

/// `request` with `edit`; everything else, known or not, keeps its bytes.
///
/// # Errors
/// A request that is no protobuf or lacks the messages that are changed.
pub(crate) fn apply(request: &[u8], edit: &Edit) -> Result<Vec<u8>, WireError> {
    wire::change(request, &[CONFIG], &mut |config| {
        let mut config = wire::without(&wire::without(config, COMMAND)?, ARGS)?;
        if let Some(profile) = &edit.seccomp {
            config = wire::change(&config, &[LINUX, SECURITY_CONTEXT], &mut |security| {
                let mut security = wire::without(security, SECCOMP)?;
                let profile = SecurityProfile {
                    profile_type: ProfileType::Localhost as i32,
                    localhost_ref: profile.clone(),
                };
                wire::append(&mut security, SECCOMP, &profile.encode_to_vec());
                Ok(security)
            })?;
        }
        wire::append(&mut config, COMMAND, edit.command.as_bytes());
        for mount in &edit.mounts {
            wire::append(&mut config, MOUNTS, &mount.encode_to_vec());
        }
        wire::append(&mut config, ANNOTATIONS, &map_entry(&edit.annotation));
        Ok(config)
    })
}

fn map_entry((key, value): &(String, String)) -> Vec<u8> {
    let mut entry = Vec::new();
    wire::append(&mut entry, 1, key.as_bytes());
    wire::append(&mut entry, 2, value.as_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{
        ContainerConfig, CreateContainerRequest, KeyValue, LinuxContainerConfig,
        LinuxContainerSecurityContext, PodSandboxConfig,
    };

    /// A field that no release has.
    const UNKNOWN: u32 = 4242;

    fn edit() -> Edit {
        Edit {
            command: "/run/woodfrog/init".into(),
            mounts: vec![Mount {
                container_path: "/run/woodfrog".into(),
                readonly: true,
                ..Mount::default()
            }],
            annotation: ("dev.woodfrog/token".into(), "0123".into()),
            seccomp: Some("/p.json".into()),
        }
    }

    fn request() -> CreateContainerRequest {
        CreateContainerRequest {
            pod_sandbox_id: "sandbox".into(),
            config: Some(ContainerConfig {
                command: vec!["/app".into(), "x".into()],
                args: vec!["y".into()],
                envs: vec![KeyValue { key: "A".into(), value: "b".into() }],
                mounts: vec![Mount { container_path: "/data".into(), ..Mount::default() }],
                annotations: [("k".into(), "v".into()), ("dev.woodfrog/token".into(), "forged".into())]
                    .into(),
                linux: Some(LinuxContainerConfig {
                    security_context: Some(LinuxContainerSecurityContext {
                        no_new_privs: true,
                        seccomp: Some(SecurityProfile { profile_type: 1, localhost_ref: String::new() }),
                        ..LinuxContainerSecurityContext::default()
                    }),
                    ..LinuxContainerConfig::default()
                }),
                ..ContainerConfig::default()
            }),
            sandbox_config: Some(PodSandboxConfig { hostname: "h".into(), ..PodSandboxConfig::default() }),
        }
    }

    #[test]
    fn each_field_is_as_meant_and_the_others_are_as_they_were() {
        let edited = apply(&request().encode_to_vec(), &edit()).unwrap();
        let mut expected = request();
        let config = expected.config.as_mut().unwrap();
        (config.command, config.args) = (vec!["/run/woodfrog/init".into()], vec![]);
        config.mounts.extend(edit().mounts);
        config.annotations.insert("dev.woodfrog/token".into(), "0123".into());
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.seccomp = Some(SecurityProfile { profile_type: 2, localhost_ref: "/p.json".into() });
        assert_eq!(CreateContainerRequest::decode(&edited[..]).unwrap(), expected);
    }

    #[test]
    fn unknown_fields_are_kept_on_every_level() {
        let mark = |message: &[u8]| {
            let mut message = message.to_vec();
            wire::append(&mut message, UNKNOWN, b"future");
            Ok(message)
        };
        let paths: [&[u32]; 4] = [&[], &[CONFIG], &[CONFIG, LINUX], &[CONFIG, LINUX, SECURITY_CONTEXT]];
        let marked = paths.iter().fold(request().encode_to_vec(), |bytes, path| {
            wire::change(&bytes, path, &mut { mark }).unwrap()
        });
        let edited = apply(&marked, &edit()).unwrap();
        for path in paths {
            let mut kept = 0;
            wire::change(&edited, path, &mut |message| {
                kept = wire::fields(message).filter(|f| f.unwrap().number == UNKNOWN).count();
                Ok(message.to_vec())
            })
            .unwrap();
            assert_eq!(kept, 1, "{path:?}");
        }
    }

    #[test]
    fn without_a_profile_the_security_context_keeps_its_bytes() {
        let none = Edit { seccomp: None, ..edit() };
        let edited =
            CreateContainerRequest::decode(&apply(&request().encode_to_vec(), &none).unwrap()[..]).unwrap();
        assert_eq!(edited.config.unwrap().linux, request().config.unwrap().linux);
    }

    #[test]
    fn a_request_without_config_cannot_be_edited() {
        assert_eq!(apply(&[], &edit()), Err(WireError::Absent(CONFIG)));
    }
}
