//! The CRI shim between kubelet and the container runtime.
