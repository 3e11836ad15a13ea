//! The shim's service.

/// Its name.
pub const UNIT: &str = "woodfrog-shim.service";

/// Where its file is on the host.
pub(crate) const UNIT_PATH: &str = "/etc/systemd/system/woodfrog-shim.service";

/// Text of the unit for a runtime's socket. The program is found by the link, so that an upgrade rarely changes the unit.
pub(crate) fn text(runtime_socket: &str) -> String {
    format!(
        "\
# Made by `woodfrog node install`, removed by `woodfrog node uninstall`.
[Unit]
Description=Woodfrog CRI shim between kubelet and the container runtime
After=containerd.service
Before=kubelet.service
# kubelet can do nothing without the shim: it is started again however often it ends.
StartLimitIntervalSec=0

[Service]
ExecStart={current}/node-agent cri-shim --runtime {runtime_socket}
Restart=always
RestartSec=200ms
# As containerd: the last to be killed when memory is short.
OOMScoreAdjust=-999
LimitNOFILE=1048576
TasksMax=infinity
# Control directories of running containers are in here and outlive the service.
RuntimeDirectory=woodfrog
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes

[Install]
WantedBy=multi-user.target
",
        current = crate::CURRENT
    )
}
