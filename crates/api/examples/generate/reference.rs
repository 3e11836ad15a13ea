//! `docs/reference.md`: the fields of the resources as tables, from the same schemas.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

const HEAD: &str = "\
# Reference of the resources

Generated from `crates/api` by `cargo xtask generate`. Do not edit. `kubectl explain checkpoint.spec` and the like print the same.

A field with a star must be given. Durations are numbers with `ms`, `s`, `m` or `h`: `90s`, `5m`, `1h30m`.
";

/// The whole page.
pub(crate) fn page(crds: &[(&'static str, CustomResourceDefinition)]) -> String {
    let mut page = HEAD.to_owned();
    for (_, crd) in crds {
        let value = serde_json::to_value(crd).expect("a definition is serializable");
        resource(&mut page, &value);
    }
    page
}

fn resource(page: &mut String, crd: &Value) {
    let version = &crd["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let names = &crd["spec"]["names"];
    let kind = text(&names["kind"]);
    let short: Vec<_> = list(&names["shortNames"]).map(|name| format!("`{}`", text(name))).collect();
    let _ = write!(
        page,
        "\n## {kind}\n\n`{}/{}`, short name {}. {}\n",
        text(&crd["spec"]["group"]),
        text(&version["name"]),
        short.join(", "),
        text(&schema["description"]),
    );
    refusals(page, schema);
    for part in ["spec", "status"] {
        table(page, part, &schema["properties"][part]);
    }
    let _ = write!(
        page,
        "\n### Columns of `kubectl get`\n\n| Column | Shows | With `-o wide` only |\n|---|---|---|\n"
    );
    for column in list(&version["additionalPrinterColumns"]) {
        let wide = if column["priority"].as_i64().unwrap_or(0) > 0 { "yes" } else { "" };
        let _ = writeln!(page, "| {} | `{}` | {wide} |", text(&column["name"]), text(&column["jsonPath"]));
    }
}

/// A table of an object's fields, then one for each object below it.
fn table(page: &mut String, path: &str, schema: &Value) {
    let Some(fields) = schema["properties"].as_object() else { return };
    let _ = write!(page, "\n### {path}\n\n");
    let _ = write!(page, "| Field | Type | Default | Meaning |\n|---|---|---|---|\n");
    let required: Vec<_> = list(&schema["required"]).map(text).collect();
    for (name, field) in fields {
        let star = if required.contains(&name.as_str()) { " *" } else { "" };
        let default = match &field["default"] {
            Value::Null => String::new(),
            Value::Object(_) => String::new(),
            value => format!("`{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        };
        let _ = writeln!(
            page,
            "| `{name}`{star} | {} | {default} | {} |",
            kind_of(field),
            text(&field["description"]).replace('|', "\\|"),
        );
    }
    refusals(page, schema);
    for (name, field) in fields {
        if name == "conditions" {
            continue; // The same for every resource of Kubernetes.
        }
        table(page, &format!("{path}.{name}"), field);
        table(page, &format!("{path}.{name}[]"), &field["items"]);
    }
}

/// What the API server says where a rule is broken, of an object itself or of those of its fields that have no table.
fn refusals(page: &mut String, schema: &Value) {
    let rules = |schema: &Value| -> Vec<String> {
        list(&schema["x-kubernetes-validations"]).map(|rule| text(&rule["message"]).to_owned()).collect()
    };
    let mut sentences = rules(schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if field["properties"].is_null() && !is_duration(field) {
            sentences.extend(rules(field).iter().map(|sentence| format!("`{name}`: {sentence}")));
        }
    }
    if !sentences.is_empty() {
        let _ = write!(page, "\nRefused with these sentences:\n\n- {}\n", sentences.join("\n- "));
    }
}

fn kind_of(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        return values.iter().map(|value| format!("`{}`", text(value))).collect::<Vec<_>>().join(", ");
    }
    let range = match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) => format!(", at least {least}"),
        _ => String::new(),
    };
    match text(&field["type"]) {
        "array" => format!("list of {}", kind_of(&field["items"])),
        "object" if field["additionalProperties"].is_object() => "map of strings".to_owned(),
        "string" if text(&field["format"]) == "date-time" => "time".to_owned(),
        "string" if is_duration(field) => "duration".to_owned(),
        kind => format!("{kind}{range}"),
    }
}

fn is_duration(field: &Value) -> bool {
    list(&field["x-kubernetes-validations"]).any(|rule| text(&rule["message"]).contains("not a duration"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
