//! A pod as the CRI requests that kubelet makes of it.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    PodSandboxConfig, PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use kube::ResourceExt as _;
use woodfrog_testkubelet::pod::{confinement, namespaces, profile};

/// The node's directory of all that belongs to a pod.
pub(crate) fn pod_dir(uid: &str) -> String {
    format!("/var/lib/kubelet/pods/{uid}")
}

/// The node's directories of a pod's volumes, by the volume's name.
pub(crate) fn volumes(pod: &Pod) -> Result<Vec<(String, String)>> {
    let uid = pod.uid().unwrap_or_default();
    let all = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    all.map(|volume| {
        ensure!(volume.empty_dir.is_some(), "volume {}: only emptyDir is imitated here", volume.name);
        let dir = format!("{}/volumes/kubernetes.io~empty-dir/{}", pod_dir(&uid), volume.name);
        Ok((volume.name.clone(), dir))
    })
    .collect()
}

/// The sandbox.
pub(crate) fn sandbox(pod: &Pod) -> Result<PodSandboxConfig> {
    let spec = pod.spec.as_ref().context("a pod without a specification")?;
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let namespace = pod.namespace().unwrap_or_default();
    ensure!(spec.init_containers.as_ref().is_none_or(Vec::is_empty), "init containers are not imitated here");
    let context = spec.security_context.clone().unwrap_or_default();
    Ok(PodSandboxConfig {
        hostname: spec.hostname.clone().unwrap_or_else(|| name.chars().take(63).collect()),
        log_directory: format!("/var/log/pods/{namespace}_{name}_{uid}"),
        labels: pod.labels().clone().into_iter().chain(labels(pod)).collect(),
        annotations: pod.annotations().clone().into_iter().collect(),
        metadata: Some(PodSandboxMetadata { name, uid, namespace, attempt: 0 }),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(false)),
                supplemental_groups: groups(&context),
                seccomp: Some(profile(ProfileType::RuntimeDefault)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// A container, as it is started for the `attempt`th time, from 0. `ip`: the pod's address.
pub(crate) fn container(pod: &Pod, container: &Container, attempt: u32, ip: &str) -> Result<ContainerConfig> {
    let spec = pod.spec.clone().unwrap_or_default();
    let image = container.image.clone().unwrap_or_default();
    let name = &container.name;
    let env = container.env.iter().flatten().map(|variable| environment(pod, &spec, variable, ip));
    ensure!(container.env_from.as_ref().is_none_or(Vec::is_empty), "container {name}: no envFrom here");
    let mut labels = HashMap::from(labels(pod));
    labels.insert("io.kubernetes.container.name".to_owned(), name.clone());
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.clone(), attempt }),
        image: Some(ImageSpec { image: image.clone(), user_specified_image: image, ..Default::default() }),
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env.collect::<Result<_>>()?,
        mounts: mounts(pod, container)?,
        labels,
        log_path: format!("{name}/{attempt}.log"),
        stdin: container.stdin.unwrap_or_default(),
        tty: container.tty.unwrap_or_default(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(security(&spec, container)?),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn labels(pod: &Pod) -> [(String, String); 3] {
    [
        ("io.kubernetes.pod.name".to_owned(), pod.name_any()),
        ("io.kubernetes.pod.namespace".to_owned(), pod.namespace().unwrap_or_default()),
        ("io.kubernetes.pod.uid".to_owned(), pod.uid().unwrap_or_default()),
    ]
}

fn environment(pod: &Pod, spec: &PodSpec, variable: &EnvVar, ip: &str) -> Result<KeyValue> {
    let field = variable.value_from.as_ref().map(|from| {
        let field = from.field_ref.as_ref().map(|field| field.field_path.as_str());
        Ok(match field {
            Some("metadata.name") => pod.name_any(),
            Some("metadata.namespace") => pod.namespace().unwrap_or_default(),
            Some("metadata.uid") => pod.uid().unwrap_or_default(),
            Some("spec.nodeName") => spec.node_name.clone().unwrap_or_default(),
            Some("status.podIP") => ip.to_owned(),
            _ => bail!("variable {}: its source is not imitated here", variable.name),
        })
    });
    let value = field.unwrap_or_else(|| Ok(variable.value.clone().unwrap_or_default()))?;
    Ok(KeyValue { key: variable.name.clone(), value })
}

fn mounts(pod: &Pod, container: &Container) -> Result<Vec<Mount>> {
    let volumes = volumes(pod)?;
    let all = container.volume_mounts.iter().flatten();
    all.map(|mount| {
        let (_, dir) = volumes
            .iter()
            .find(|(name, _)| *name == mount.name)
            .with_context(|| format!("container {}: there is no volume {}", container.name, mount.name))?;
        let below = mount.sub_path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        Ok(Mount {
            container_path: mount.mount_path.clone(),
            host_path: format!("{dir}{below}"),
            readonly: mount.read_only.unwrap_or_default(),
            ..Default::default()
        })
    })
    .collect()
}

fn security(spec: &PodSpec, container: &Container) -> Result<LinuxContainerSecurityContext> {
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or_default();
    let id = |value: Option<i64>| value.map(|value| Int64Value { value });
    let common = if privileged { unconfined() } else { confinement(false) };
    Ok(LinuxContainerSecurityContext {
        privileged,
        capabilities: own.capabilities.as_ref().map(|capabilities| Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        run_as_user: id(own.run_as_user.or(of_pod.run_as_user)),
        run_as_group: id(own.run_as_group.or(of_pod.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or_default(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        supplemental_groups: groups(&of_pod),
        seccomp: Some(seccomp(&own, &of_pod)?),
        ..common
    })
}

fn unconfined() -> LinuxContainerSecurityContext {
    LinuxContainerSecurityContext {
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        ..confinement(false)
    }
}

fn groups(pod: &PodSecurityContext) -> Vec<i64> {
    pod.supplemental_groups.iter().flatten().chain(&pod.fs_group).copied().collect()
}

/// Without a profile a container is unconfined, as where kubelet has no `seccompDefault`.
fn seccomp(own: &SecurityContext, pod: &PodSecurityContext) -> Result<SecurityProfile> {
    let chosen: Option<&SeccompProfile> = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    Ok(profile(match chosen.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        Some("Unconfined") | None => ProfileType::Unconfined,
        Some(other) => bail!("seccomp profile {other} is not imitated here"),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "web-0", "namespace": "shop", "uid": "u", "annotations": { "a": "b" } },
            "spec": {
                "securityContext": { "runAsUser": 1000, "fsGroup": 7, "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{
                    "name": "app",
                    "image": "i",
                    "env": [{ "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
                    "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
                    "volumeMounts": [{ "name": "tmp", "mountPath": "/tmp" }],
                }],
                "volumes": [{ "name": "tmp", "emptyDir": {} }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_container_gets_what_its_pod_and_it_say() {
        let pod = pod();
        let config = container(&pod, &pod.spec.as_ref().unwrap().containers[0], 2, "10.0.0.9").unwrap();
        assert_eq!(config.envs[0].value, "10.0.0.9");
        assert_eq!(config.log_path, "app/2.log");
        assert_eq!(config.mounts[0].host_path, "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/tmp");
        assert_eq!(config.labels["io.kubernetes.pod.namespace"], "shop");
        let security = config.linux.unwrap().security_context.unwrap();
        assert_eq!(security.run_as_user.unwrap().value, 1000);
        assert!(security.no_new_privs && security.seccomp.unwrap() == profile(ProfileType::RuntimeDefault));
        assert_eq!(security.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert_eq!(security.supplemental_groups, [7]);
        assert_eq!(sandbox(&pod).unwrap().annotations["a"], "b");
    }

    #[test]
    fn what_is_not_imitated_is_refused() {
        let mut pod = pod();
        pod.spec.as_mut().unwrap().volumes.as_mut().unwrap()[0].empty_dir = None;
        let error = volumes(&pod).unwrap_err().to_string();
        assert!(error.contains("volume tmp"), "{error}");
    }
}
