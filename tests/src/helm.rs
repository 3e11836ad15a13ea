//! Helm, the library, for tests of the chart. It is a package of PyPI, installed once into the cache of this machine.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use woodfrog_testnode::Need;

/// The chart in the sources.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/woodfrog");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm");
/// The oldest Python for which the package is made.
const PYTHON: (u32, u32) = (3, 10);

/// Helm's library in a Python of its own.
#[derive(Clone, Debug)]
pub struct Helm {
    python: PathBuf,
}

impl Helm {
    /// Nothing where this machine lacks what it needs; the reason has been printed then.
    ///
    /// # Panics
    /// Something lacks and `WOODFROG_REQUIRE` names `helm`, or the package cannot be installed.
    #[must_use]
    pub fn look() -> Option<Self> {
        let required = std::env::var("WOODFROG_REQUIRE").unwrap_or_default();
        if let Some(lacks) = lacks() {
            assert!(!required.split(',').any(|need| need.trim() == "helm"), "WOODFROG_REQUIRE=helm: {lacks}");
            eprintln!("skipped: {lacks}");
            return None;
        }
        let script = include_str!("../helm/build.sh");
        let dir = woodfrog_testnode::cached("install Helm's library", script, Path::new(SOURCES));
        Some(Self { python: dir.expect("Helm's library").join("venv/bin/python") })
    }

    /// What `helm lint --strict` says.
    ///
    /// # Errors
    /// Helm's own.
    pub fn lint(&self, values: &Value) -> Result<Value> {
        self.call(&json!({ "do": "lint", "chart": CHART, "values": values }))
    }

    /// What `helm template` makes of the chart, in the order of the templates' names, without the notes.
    ///
    /// # Errors
    /// Helm's own, and values that the schema refuses.
    pub fn render(&self, namespace: &str, values: &Value) -> Result<Vec<Value>> {
        let request = json!({
            "do": "render", "chart": CHART, "name": "woodfrog", "namespace": namespace, "values": values,
        });
        let templates = self.call(&request)?;
        let mut objects = Vec::new();
        for (path, text) in templates.as_object().context("no templates")? {
            let text = text.as_str().context("no text")?;
            if path.ends_with(".txt") {
                continue;
            }
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(text).with_context(|| format!("{path}:\n{text}"))?;
            objects.extend(documents.into_iter().filter(|document| !document.is_null()));
        }
        Ok(objects)
    }

    /// `helm install`, `upgrade` or `uninstall` of the release `woodfrog`.
    ///
    /// # Errors
    /// Helm's own.
    pub fn release(&self, verb: &str, kubeconfig: &Path, namespace: &str, values: &Value) -> Result<Value> {
        self.call(&json!({
            "do": verb, "chart": CHART, "name": "woodfrog", "kubeconfig": kubeconfig, "namespace": namespace,
            "values": values,
        }))
    }

    fn call(&self, request: &Value) -> Result<Value> {
        let mut child = Command::new(&self.python)
            .arg(format!("{SOURCES}/helm.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {}", self.python.display()))?;
        child.stdin.take().context("its input")?.write_all(request.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let mut answer: Value = serde_json::from_slice(&output.stdout)?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{error}");
        }
        Ok(answer["ok"].take())
    }
}

/// What this machine lacks for Helm's library.
fn lacks() -> Option<String> {
    if let Need::Lacks(what) = Need::look() {
        return Some(what);
    }
    let program = "import sys, ensurepip; print(*sys.version_info[:2])";
    let output = Command::new("python3").args(["-c", program]).output();
    let version = output.ok().filter(|output| output.status.success()).and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        let (major, minor) = text.trim().split_once(' ')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    match version {
        Some(version) if version >= PYTHON => None,
        Some((major, minor)) => {
            Some(format!("python3 is {major}.{minor}; Helm's library needs 3.10 or later"))
        }
        None => Some("python3 with its venv module: apt-get install python3-venv".to_owned()),
    }
}
