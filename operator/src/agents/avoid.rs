//! New pods are better off where there is an agent: elsewhere they start cold, and cannot be frozen.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};

/// The highest that there is.
const WEIGHT: i32 = 100;
/// So that a pod does not become large with the list.
const MOST: usize = 50;

/// Has the scheduler prefer other nodes than these. Where there are no others, or the pod must go there, it goes there.
pub(crate) fn avoid(spec: &mut PodSpec, nodes: &[String]) {
    if nodes.is_empty() {
        return;
    }
    // Of fields a requirement may have one value (PodSpec, NodeSelectorTerm.matchFields); all of a term's must hold.
    let other = |node: &String| NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec![node.clone()]),
    };
    let elsewhere = NodeSelectorTerm {
        match_fields: Some(nodes.iter().take(MOST).map(other).collect()),
        ..NodeSelectorTerm::default()
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.get_or_insert_default();
    preferred.push(PreferredSchedulingTerm { preference: elsewhere, weight: WEIGHT });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_nodes_are_preferred_beside_what_the_template_prefers() {
        let mut spec = PodSpec::default();
        avoid(&mut spec, &[]);
        assert_eq!(spec, PodSpec::default());
        let theirs =
            json!({"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}});
        let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [theirs]}});
        spec.affinity = serde_json::from_value(affinity).unwrap();
        avoid(&mut spec, &["a".into(), "b".into()]);
        let not = |node: &str| json!({"key": "metadata.name", "operator": "NotIn", "values": [node]});
        let ours = json!({"weight": 100, "preference": {"matchFields": [not("a"), not("b")]}});
        let node = spec.affinity.unwrap().node_affinity.unwrap();
        let preferred = node.preferred_during_scheduling_ignored_during_execution.unwrap();
        assert_eq!(serde_json::to_value(preferred).unwrap(), json!([theirs, ours]));
    }
}
