//! Changing one setting in files that belong to others: every other byte stays.

use serde_json::Value;

/// kubelet's setting (KubeletConfiguration, `kubelet.config.k8s.io/v1beta1`).
const KEY: &str = "containerRuntimeEndpoint";
/// The same as a flag, which wins over the setting.
const FLAG: &str = "--container-runtime-endpoint";

/// What a configuration file names; None: nothing, or the empty string, which kubelet takes for nothing.
pub(super) fn setting(text: &str) -> Result<Option<String>, String> {
    let value = parse(text)?;
    let endpoint = value.get(KEY).and_then(Value::as_str).unwrap_or_default();
    Ok((!endpoint.is_empty()).then(|| endpoint.to_owned()))
}

/// The file with another endpoint, or with none. Fails where a line cannot be exchanged without touching something else.
pub(super) fn set_setting(text: &str, endpoint: Option<&str>) -> Result<String, String> {
    let line = endpoint.map(|endpoint| format!("{KEY}: {endpoint}\n"));
    let is_setting =
        |line: &str| line.strip_prefix(KEY).is_some_and(|rest| rest.trim_start().starts_with(':'));
    let mut changed = String::with_capacity(text.len() + 80);
    let mut replaced = false;
    for old in text.split_inclusive('\n') {
        if is_setting(old) {
            changed.push_str(if replaced { "" } else { line.as_deref().unwrap_or_default() });
            replaced = true;
        } else {
            changed.push_str(old);
        }
    }
    if let Some(line) = line.filter(|_| !replaced) {
        if !changed.is_empty() && !changed.ends_with('\n') {
            changed.push('\n');
        }
        changed.push_str(&line);
    }
    let (mut before, mut after) = (parse(text)?, parse(&changed)?);
    let named = after.get(KEY).and_then(Value::as_str);
    if named != endpoint || rest(&mut before) != rest(&mut after) {
        return Err("the file is not block-style YAML".into());
    }
    Ok(changed)
}

fn rest(value: &mut Value) -> &Value {
    if let Some(map) = value.as_object_mut() {
        map.remove(KEY);
    }
    value
}

fn parse(text: &str) -> Result<Value, String> {
    let value: Value =
        serde_saphyr::from_str(text).map_err(|e| e.to_string().lines().next().unwrap_or("").to_owned())?;
    if value.is_object() { Ok(value) } else { Err("the file is no YAML mapping".into()) }
}

/// The value of the endpoint's flag that counts, the last one, in a file of environment variables for kubelet's unit.
pub(super) fn flag(text: &str) -> Option<&str> {
    last(text, FLAG).map(|(start, end)| &text[start..end])
}

/// The value of `--config-dir` in such a file.
pub(super) fn config_dir(text: &str) -> Option<&str> {
    last(text, "--config-dir").map(|(start, end)| &text[start..end])
}

/// The file with another value of the endpoint's flag; None if it has no such flag.
pub(super) fn set_flag(text: &str, endpoint: &str) -> Option<String> {
    let (start, end) = last(text, FLAG)?;
    Some([&text[..start], endpoint, &text[end..]].concat())
}

/// Where the last value of a flag is, `--flag=VALUE` or `--flag VALUE`, in lines that are no comments.
fn last(text: &str, flag: &str) -> Option<(usize, usize)> {
    let mut found = None;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let comment = line.trim_start().starts_with(['#', ';']);
        for (at, _) in line.match_indices(flag).filter(|_| !comment) {
            let value = at + flag.len();
            let starts_word = at == 0 || line[..at].ends_with(['"', '\'', '=', ' ', '\t']);
            if starts_word && line[value..].starts_with(['=', ' ']) {
                let rest = &line[value + 1..];
                let length =
                    rest.find(|c: char| c.is_whitespace() || c == '"' || c == '\'').unwrap_or(rest.len());
                found = Some((offset + value + 1, offset + value + 1 + length));
            }
        }
        offset += line.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIM: &str = crate::SHIM_ENDPOINT;
    const KUBEADM: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
# by hand, do not touch
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard:
  nodefs.available: 10%
kind: KubeletConfiguration
";

    #[test]
    fn there_and_back_leaves_every_byte() {
        assert_eq!(setting(KUBEADM).unwrap().as_deref(), Some("unix:///run/containerd/containerd.sock"));
        let shim = set_setting(KUBEADM, Some(SHIM)).unwrap();
        assert_eq!(setting(&shim).unwrap().as_deref(), Some(SHIM));
        assert_eq!(set_setting(&shim, Some("unix:///run/containerd/containerd.sock")).unwrap(), KUBEADM);
    }

    #[test]
    fn a_setting_that_was_not_there_is_added_and_removed() {
        let text = "kind: KubeletConfiguration\nmaxPods: 50\n";
        let shim = set_setting(text, Some(SHIM)).unwrap();
        assert_eq!(setting(&shim).unwrap().as_deref(), Some(SHIM));
        assert_eq!(set_setting(&shim, None).unwrap(), text);
    }

    #[test]
    fn an_empty_setting_is_none() {
        let text = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"\"\n";
        assert_eq!(setting(text).unwrap(), None);
        assert_eq!(setting(&set_setting(text, Some(SHIM)).unwrap()).unwrap().as_deref(), Some(SHIM));
    }

    #[test]
    fn what_is_not_block_yaml_is_refused() {
        assert!(set_setting("{\"kind\": \"KubeletConfiguration\"}\n", Some(SHIM)).is_err());
        assert!(set_setting("{\"containerRuntimeEndpoint\": \"unix:///a\"}\n", Some(SHIM)).is_err());
        assert!(set_setting("\"containerRuntimeEndpoint\": unix:///a\n", Some(SHIM)).is_err());
        assert!(set_setting("- a\n- b\n", Some(SHIM)).is_err());
        assert!(setting(": : :\n\t- x").is_err());
    }

    #[test]
    fn a_setting_of_the_same_name_further_in_is_not_ours() {
        let text = "other:\n  containerRuntimeEndpoint: unix:///theirs\nkind: x\n";
        assert_eq!(setting(text).unwrap(), None);
        let shim = set_setting(text, Some(SHIM)).unwrap();
        assert!(shim.contains("  containerRuntimeEndpoint: unix:///theirs\n"));
    }

    #[test]
    fn the_last_flag_counts_and_is_changed() {
        let text = "# --container-runtime-endpoint=unix:///no\n\
            KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///a --v=2 --container-runtime-endpoint unix:///b\"\n";
        assert_eq!(flag(text), Some("unix:///b"));
        let shim = set_flag(text, SHIM).unwrap();
        assert_eq!(flag(&shim), Some(SHIM));
        assert_eq!(set_flag(&shim, "unix:///b").unwrap(), text);
        assert_eq!(flag("KUBELET_EXTRA_ARGS=--container-runtime-endpoint=unix:///c\n"), Some("unix:///c"));
        assert_eq!(flag("KUBELET_EXTRA_ARGS=\n"), None);
        assert_eq!(flag("A=\"--not--container-runtime-endpoint=unix:///c\"\n"), None);
        assert_eq!(
            config_dir("A='--config-dir=/etc/kubernetes/kubelet.conf.d'\n"),
            Some("/etc/kubernetes/kubelet.conf.d")
        );
    }
}
