//! What a pod is to be, as the CRI requests that kubelet would make of it.

use std::collections::HashMap;

use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};

/// How much a container may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// The "restricted" pod security standard: uid 1000, read-only root, all capabilities dropped, no new privileges,
    /// RuntimeDefault seccomp.
    Restricted,
    /// uid 0 with the runtime's default capabilities and no seccomp profile.
    Root,
}

/// A pod of one container.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name of the pod; the container's is `app`.
    pub name: String,
    /// Reference of the image.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Variables of the environment.
    pub env: Vec<(String, String)>,
    /// How much it may do.
    pub security: Security,
    /// User and group of a restricted container.
    pub user: i64,
    /// Annotations of the pod.
    pub annotations: HashMap<String, String>,
    /// An emptyDir, mounted at `/tmp`.
    pub tmp: bool,
    /// More mounts.
    pub mounts: Vec<Mount>,
    /// It is in the node's network namespace, at 127.0.0.1.
    pub host_network: bool,
}

impl PodSpec {
    /// A restricted pod with an emptyDir at `/tmp`.
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            security: Security::Restricted,
            user: 1000,
            annotations: HashMap::new(),
            tmp: true,
            mounts: Vec::new(),
            host_network: false,
        }
    }

    /// Puts it under Woodfrog by annotation.
    pub fn managed(mut self) -> Self {
        self.annotations.insert("woodfrog.dev/managed".into(), "true".into());
        self
    }

    /// Gives it arguments in place of the image's command.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// Changes how much it may do.
    pub fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Changes user and group, which leaves all other restrictions as they are.
    pub fn user(mut self, user: i64) -> Self {
        self.user = user;
        self
    }

    /// The pod's UID: its name, since names are unique in a test.
    pub fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }

    /// The node's directory of the emptyDir at `/tmp`.
    pub fn tmp_dir(&self) -> String {
        format!("/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/tmp", self.uid())
    }

    fn labels(&self) -> HashMap<String, String> {
        [
            ("io.kubernetes.pod.name", self.name.clone()),
            ("io.kubernetes.pod.namespace", "default".into()),
            ("io.kubernetes.pod.uid", self.uid()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// The sandbox's configuration.
    pub fn sandbox(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: if self.host_network { String::new() } else { self.name.clone() },
            log_directory: format!("/var/log/pods/default_{}_{}", self.name, self.uid()),
            labels: self.labels(),
            annotations: self.annotations.clone(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(self.host_network)),
                    seccomp: Some(profile(ProfileType::RuntimeDefault)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The container's configuration.
    pub fn container(&self) -> ContainerConfig {
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".into(), "app".into());
        let mut mounts = self.mounts.clone();
        if self.tmp {
            mounts.push(Mount {
                container_path: "/tmp".into(),
                host_path: self.tmp_dir(),
                ..Default::default()
            });
        }
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "app".into(), attempt: 0 }),
            image: Some(ImageSpec {
                image: self.image.clone(),
                user_specified_image: self.image.clone(),
                ..Default::default()
            }),
            command: self.command.clone(),
            args: self.args.clone(),
            envs: self
                .env
                .iter()
                .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() })
                .collect(),
            mounts,
            labels,
            log_path: "app/0.log".into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(self.security_context()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn security_context(&self) -> LinuxContainerSecurityContext {
        let common = confinement(self.host_network);
        match self.security {
            Security::Restricted => LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    drop_capabilities: vec!["ALL".into()],
                    ..Default::default()
                }),
                run_as_user: Some(k8s_cri::v1::Int64Value { value: self.user }),
                run_as_group: Some(k8s_cri::v1::Int64Value { value: self.user }),
                readonly_rootfs: true,
                no_new_privs: true,
                seccomp: Some(profile(ProfileType::RuntimeDefault)),
                ..common
            },
            Security::Root => {
                LinuxContainerSecurityContext { seccomp: Some(profile(ProfileType::Unconfined)), ..common }
            }
        }
    }
}

/// What kubelet asks of every container that is not privileged: namespaces of its pod, and most of `/proc` out of reach.
pub fn confinement(host_network: bool) -> LinuxContainerSecurityContext {
    LinuxContainerSecurityContext {
        namespace_options: Some(namespaces(host_network)),
        masked_paths: ["/proc/kcore", "/proc/keys", "/proc/timer_list"].map(String::from).into(),
        readonly_paths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
            .map(String::from)
            .into(),
        ..Default::default()
    }
}

/// The namespaces of a pod that shares none with its node, or its network.
pub fn namespaces(host_network: bool) -> NamespaceOption {
    let network = if host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A seccomp profile that needs no file.
pub fn profile(profile_type: ProfileType) -> SecurityProfile {
    SecurityProfile { profile_type: profile_type.into(), ..Default::default() }
}
