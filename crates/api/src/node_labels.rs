//! Labels by which a node says what it can thaw, and the affinity that finds such nodes.
//!
//! The agent puts [`labels`] on its node; the operator gives pods the [`requirements`] of their images. Scheduling cannot
//! compare versions, so these are numbers (`Gt` compares integers), and each CPU feature is a label of its own.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeSelectorRequirement;

use crate::Compatibility;

/// The architecture as the kernel names it.
pub const ARCHITECTURE: &str = "node.woodfrog.dev/architecture";
/// The CPU's vendor.
pub const CPU_VENDOR: &str = "node.woodfrog.dev/cpu-vendor";
/// Bytes of a thread's extended state.
pub const XSAVE_BYTES: &str = "node.woodfrog.dev/xsave-bytes";
/// The kernel's first two numbers as one: 6.18 is 6018.
pub const KERNEL: &str = "node.woodfrog.dev/kernel";
/// CRIU's three numbers as one: 4.2.1 is 4002001.
pub const CRIU: &str = "node.woodfrog.dev/criu";
/// Bytes of a page.
pub const PAGE_BYTES: &str = "node.woodfrog.dev/page-bytes";
/// 1 or 2.
pub const CGROUP_VERSION: &str = "node.woodfrog.dev/cgroup-version";
/// Prefix of a CPU feature's label, whose value is `true`.
pub const CPU_FEATURE_PREFIX: &str = "cpu.woodfrog.dev/";
/// Prefix of all others.
pub const PREFIX: &str = "node.woodfrog.dev/";

/// The labels of a node that is like this.
#[must_use]
pub fn labels(node: &Compatibility) -> BTreeMap<String, String> {
    let features = node.cpu_features.iter().map(|name| (feature(name), "true".to_owned()));
    let exact = exact(node).map(|(key, value)| (key.to_owned(), value));
    let least = least(node).map(|(key, value)| (key.to_owned(), value.to_string()));
    features.chain(exact).chain(least).collect()
}

/// What a node's labels must be for it to thaw an image that was frozen on a node like this: all of these.
#[must_use]
pub fn requirements(image: &Compatibility) -> Vec<NodeSelectorRequirement> {
    let one = |key: String, operator: &str, value: String| NodeSelectorRequirement {
        key,
        operator: operator.to_owned(),
        values: Some(vec![value]),
    };
    let exact = exact(image).map(|(key, value)| one(key.to_owned(), "In", value));
    let least = least(image).map(|(key, value)| one(key.to_owned(), "Gt", (value - 1).to_string()));
    let features = image.cpu_features.iter().map(|name| one(feature(name), "In", "true".to_owned()));
    exact.into_iter().chain(least).chain(features).collect()
}

/// Whether a node with these labels fulfils all the requirements, as the scheduler would say.
#[must_use]
pub fn fulfils(labels: &BTreeMap<String, String>, requirements: &[NodeSelectorRequirement]) -> bool {
    requirements.iter().all(|requirement| {
        let label = labels.get(&requirement.key);
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" => label.is_some_and(|label| values.contains(label)),
            "Gt" => {
                let number = |text: &String| text.parse::<i64>().ok();
                let (label, bound) = (label.and_then(number), values.first().and_then(number));
                label.zip(bound).is_some_and(|(label, bound)| label > bound)
            }
            _ => false,
        }
    })
}

fn exact(of: &Compatibility) -> [(&'static str, String); 4] {
    [
        (ARCHITECTURE, of.architecture.clone()),
        (CPU_VENDOR, of.cpu_vendor.clone()),
        (PAGE_BYTES, of.page_bytes.to_string()),
        (CGROUP_VERSION, of.cgroup_version.to_string()),
    ]
}

fn least(of: &Compatibility) -> [(&'static str, i64); 3] {
    [(XSAVE_BYTES, of.xsave_bytes), (KERNEL, number(&of.kernel, 2)), (CRIU, number(&of.criu, 3))]
}

fn feature(name: &str) -> String {
    format!("{CPU_FEATURE_PREFIX}{name}")
}

/// The first numbers of a version as one that compares like them, three digits each.
fn number(version: &str, most: usize) -> i64 {
    let numeric = version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let mut numbers: Vec<i64> = numeric.split('.').map(|part| part.parse().unwrap_or(0)).take(most).collect();
    numbers.resize(most, 0);
    numbers.into_iter().fold(0, |sum, number| sum * 1000 + number.min(999))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kernel: &str, criu: &str, features: &[&str]) -> Compatibility {
        Compatibility {
            architecture: "x86_64".to_owned(),
            cpu_vendor: "GenuineIntel".to_owned(),
            cpu_features: features.iter().map(|&name| name.to_owned()).collect(),
            xsave_bytes: 2696,
            kernel: kernel.to_owned(),
            criu: criu.to_owned(),
            page_bytes: 4096,
            cgroup_version: 2,
        }
    }

    #[test]
    fn a_node_that_offers_the_same_or_more_is_found_and_one_that_offers_less_is_not() {
        let image = node("6.18.3-cloud", "4.2.1", &["avx2", "sse4_1"]);
        let found = |node: &Compatibility| fulfils(&labels(node), &requirements(&image));
        assert!(found(&image));
        assert!(found(&node("6.18.0", "4.2.1", &["avx2", "avx512f", "sse4_1"])));
        assert!(found(&node("7.0.1", "5.0", &["avx2", "sse4_1"])));
        assert!(!found(&node("6.17.9", "4.2.1", &["avx2", "sse4_1"])));
        assert!(!found(&node("6.18.3", "4.2", &["avx2", "sse4_1"])));
        assert!(!found(&node("6.18.3", "4.2.1", &["avx2"])));
        assert!(!found(&Compatibility { xsave_bytes: 832, ..image.clone() }));
        assert!(!found(&Compatibility { cgroup_version: 1, ..image.clone() }));
        assert!(!found(&Compatibility { cpu_vendor: "AuthenticAMD".to_owned(), ..image.clone() }));
        assert!(!fulfils(&BTreeMap::new(), &requirements(&image)));
    }

    #[test]
    fn labels_are_such_that_kubernetes_accepts_them() {
        for (key, value) in labels(&node("6.18.3-cloud", "4.2.1", &["sse4_1", "3dnow"])) {
            let (prefix, name) = key.split_once('/').unwrap();
            let ends = |text: &str| {
                text.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            };
            assert!(prefix.ends_with(".woodfrog.dev") && ends(name) && name.len() < 64, "{key}");
            assert!(ends(&value) && value.len() < 64, "{key}={value}");
        }
    }
}
