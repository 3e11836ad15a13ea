//! What is committed is what the types say.
#![forbid(unsafe_code)]

#[path = "../examples/generate/files.rs"]
mod files;
#[path = "../examples/generate/reference.rs"]
mod reference;

use std::fs;
use std::path::Path;

#[test]
fn generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let stale: Vec<_> = files::all()
        .into_iter()
        .filter(|(name, contents)| fs::read_to_string(root.join(name)).ok().as_ref() != Some(contents))
        .map(|(name, _)| name)
        .collect();
    assert!(stale.is_empty(), "{} not up to date: run `cargo xtask generate`", stale.join(", "));
}

#[test]
fn every_field_is_documented() {
    let mut without = Vec::new();
    for (name, crd) in woodfrog_api::crds::all() {
        let value = serde_json::to_value(crd).expect("a definition is serializable");
        let schema = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert!(
            schema["properties"]["spec"]["properties"].as_object().is_some_and(|fields| fields.len() > 5)
        );
        for part in ["spec", "status"] {
            undocumented(&format!("{name}: {part}"), &schema["properties"][part], &mut without);
        }
    }
    assert!(without.is_empty(), "without a description:\n{}", without.join("\n"));
}

fn undocumented(path: &str, schema: &serde_json::Value, without: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if field["description"].as_str().is_none_or(str::is_empty) {
            without.push(path.clone());
        }
        undocumented(&path, field, without);
        undocumented(&path, &field["items"], without);
    }
}
