//! The config of a checkpoint image: the base's, with our layers, labels and history.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::base::BaseImage;
use crate::labels;
use crate::layer::Layer;
use crate::record::{CheckpointRecord, rfc3339_text};

/// What marks the image, in the config and in the manifest.
pub(crate) type Labels = BTreeMap<&'static str, String>;

pub(crate) fn labels(base: &BaseImage, record: &CheckpointRecord, new_layers: &[Layer]) -> Labels {
    let diffs = new_layers.iter().filter(|layer| layer.role == labels::ROLE_DIFF).count();
    BTreeMap::from([
        (labels::FORMAT, labels::FORMAT_VERSION.to_string()),
        (labels::ROOTFS_LAYERS, (base.layers.len() + diffs).to_string()),
        (labels::MEMORY_BYTES, record.memory_bytes().to_string()),
        (labels::MEMORY, record.memory_mode.as_str().to_owned()),
        (labels::STATE_BYTES, record.state_bytes().to_string()),
        (labels::ARCHITECTURE, record.compatibility.architecture.clone()),
        (labels::COMPATIBILITY, record.compatibility.to_string()),
        (labels::SOURCE_IMAGE, record.source.image.clone()),
        (labels::CREATED, rfc3339_text(record.created)),
    ])
}

/// Fields of the base's config that we do not know are kept.
pub(crate) fn config(
    base: &BaseImage,
    record: &CheckpointRecord,
    new_layers: &[Layer],
    labels: &Labels,
) -> serde_json::Result<Vec<u8>> {
    let created = rfc3339_text(record.created);
    let mut config = base.config.clone();
    config.insert("created".into(), created.clone().into());
    let mut diff_ids = base.diff_ids();
    diff_ids.extend(new_layers.iter().map(|layer| Value::from(layer.diff_id.clone())));
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    match base.history() {
        Some(mut history) => {
            history.extend(new_layers.iter().map(
                |layer| json!({ "created": created, "created_by": format!("woodfrog: {}", layer.role) }),
            ));
            config.insert("history".into(), history.into());
        }
        None => {
            config.remove("history");
        }
    }
    let inner = as_object(config.entry("config").or_insert(Value::Null));
    let inner_labels = as_object(inner.entry("Labels").or_insert(Value::Null));
    inner_labels.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())));
    serde_json::to_vec(&config)
}

/// Configs have `null` for what is empty.
fn as_object(value: &mut Value) -> &mut serde_json::Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}
