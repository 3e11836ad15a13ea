//! The devices that a container was given, from its OCI runtime spec.

use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::target::Device;

/// What `linux.devices` of the runtime spec lists. The runtime adds the standard ones by itself.
pub fn spec_devices(spec: &Spec) -> Vec<Device> {
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    let number = |number: i64| u32::try_from(number).ok();
    let device = |device: &oci_spec::runtime::LinuxDevice| {
        let block = match device.typ() {
            LinuxDeviceType::B => true,
            LinuxDeviceType::C | LinuxDeviceType::U => false,
            LinuxDeviceType::P | LinuxDeviceType::A => return None,
        };
        Some(Device { block, major: number(device.major())?, minor: number(device.minor())? })
    };
    devices.into_iter().flatten().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn character_and_block_devices_are_taken_from_the_spec() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "root": {"path": "/"}, "linux": {"devices": [
                {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232},
                {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
                {"path": "/dev/fifo", "type": "p", "major": 0, "minor": 0}]}}"#,
        )
        .unwrap();
        let kvm = Device { block: false, major: 10, minor: 232 };
        assert_eq!(spec_devices(&spec), [kvm, Device { block: true, major: 8, minor: 0 }]);
    }
}
