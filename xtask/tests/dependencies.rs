//! What crates may depend on: each other only along the arrows of the architecture, and on others only under licences that
//! go with Apache-2.0.
#![forbid(unsafe_code)]

use std::{env, process::Command};

use serde_json::Value;

/// Which crates of the workspace a crate may use, in its tests too.
const ARROWS: &[(&str, &[&str])] = &[
    ("node-agent", &["api", "cri-shim", "criu", "image", "protocol", "sys", "telemetry"]),
    ("operator", &["api", "telemetry"]),
    (
        "woodfrog-bench",
        &["api", "criu", "image", "protocol", "sys", "testapi", "testcluster", "testkubelet", "testnode"],
    ),
    ("woodfrog", &["criu", "image", "installer", "protocol"]),
    ("woodfrog-api", &[]),
    ("woodfrog-cri-shim", &["protocol"]),
    ("woodfrog-criu", &["protocol", "sys"]),
    ("woodfrog-image", &[]),
    ("woodfrog-installer", &["protocol"]),
    ("woodfrog-init", &["protocol", "sys"]),
    ("woodfrog-pager", &["protocol", "sys"]),
    ("woodfrog-protocol", &[]),
    ("woodfrog-sys", &[]),
    ("woodfrog-telemetry", &[]),
    ("woodfrog-testapi", &["api", "testnode"]),
    ("woodfrog-testcluster", &["api", "testapi", "testkubelet", "testnode"]),
    ("woodfrog-testkubelet", &["testnode"]),
    ("woodfrog-testnode", &[]),
    (
        "woodfrog-tests",
        &[
            "api",
            "criu",
            "image",
            "installer",
            "protocol",
            "sys",
            "testapi",
            "testcluster",
            "testkubelet",
            "testnode",
        ],
    ),
    ("xtask", &["testnode"]),
];

/// The node's own tests run pods on it.
const ARROWS_OF_TESTS: &[(&str, &str)] =
    &[("operator", "testapi"), ("woodfrog-criu", "testnode"), ("woodfrog-testnode", "testkubelet")];

const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[test]
fn crates_depend_on_each_other_only_along_the_arrows() {
    let metadata = metadata(&["--no-deps"]);
    let packages = list(&metadata, "packages");
    let names: Vec<_> = packages.iter().map(|package| text(package, "name")).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = text(package, "name");
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            wrong.push(format!("{name} has no entry in ARROWS: add one, after docs/architecture.md"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let target = text(dependency, "name");
            if !names.contains(&target) {
                continue;
            }
            let short = target.trim_start_matches("woodfrog-");
            let in_tests = dependency["kind"] == "dev" && ARROWS_OF_TESTS.contains(&(name, short));
            if !allowed.contains(&short) && !in_tests {
                wrong.push(format!("{name} must not depend on {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_has_a_licence_that_goes_with_ours() {
    let metadata = metadata(&[]);
    let wrong: Vec<_> = list(&metadata, "packages")
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(permits))
        .map(|package| {
            format!("{} {}: {}", text(package, "name"), text(package, "version"), package["license"])
        })
        .collect();
    assert!(wrong.is_empty(), "licences that are not in LICENCES:\n{}", wrong.join("\n"));
}

#[test]
fn a_licence_expression_is_read_as_spdx_defines_it() {
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "(MIT OR GPL-2.0) AND ISC",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(permits(good), "{good}");
    }
    for bad in
        ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-2.0", "GPL-2.0 WITH Classpath-exception-2.0"]
    {
        assert!(!permits(bad), "{bad}");
    }
}

/// Whether an SPDX expression lets us choose only licences of the list. AND binds more tightly than OR.
fn permits(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    either(&mut rest) && rest.is_empty()
}

fn either(words: &mut &[&str]) -> bool {
    let mut result = both(words);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        result |= both(words);
    }
    result
}

fn both(words: &mut &[&str]) -> bool {
    let mut result = one(words);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        result &= one(words);
    }
    result
}

fn one(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let result = either(words);
            *words = words.strip_prefix(&[")"]).unwrap_or(&["unclosed"]);
            result
        }
        [name, "WITH", exception, rest @ ..] => {
            *words = rest;
            LICENCES.contains(&format!("{name} WITH {exception}").as_str())
        }
        [name, rest @ ..] => {
            *words = rest;
            LICENCES.contains(name)
        }
        [] => false,
    }
}

fn metadata(arguments: &[&str]) -> Value {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().expect(key)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect(key)
}
