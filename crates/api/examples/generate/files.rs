//! What is generated: paths from the workspace's root, and contents.

use woodfrog_api::crds;

use serde_json::Value;

use crate::reference;

/// All generated files.
pub(crate) fn all() -> Vec<(String, String)> {
    let crds = crds::all();
    let mut files: Vec<_> = crds
        .iter()
        .map(|(name, crd)| {
            let mut value = serde_json::to_value(crd).expect("a definition is serializable");
            whole_numbers(&mut value);
            let body = serde_saphyr::to_string(&value).expect("a definition is serializable");
            let head = "# Generated from crates/api by `cargo xtask generate`. Do not edit.\n---\n";
            (format!("crds/{name}"), format!("{head}{body}"))
        })
        .collect();
    files.push(("docs/reference.md".to_owned(), reference::page(&crds)));
    files
}

/// Bounds are floating point numbers in the type of a definition, and people write them without.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0) {
                *value = Value::from(float as i64);
            }
        }
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(list) => list.iter_mut().for_each(whole_numbers),
        _ => {}
    }
}
