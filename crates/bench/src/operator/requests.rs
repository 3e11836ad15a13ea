//! Requests as the API server itself counts them.

use std::collections::BTreeMap;

use anyhow::Result;
use kube::Client;

/// What an API server has answered so far, or within some time: how many requests by verb and resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests(BTreeMap<(String, String), u64>);

impl Requests {
    /// All that the server has answered. A watch counts when it ends, as every few minutes it does and is renewed.
    ///
    /// # Errors
    /// The server does not tell.
    pub(super) async fn count(client: &Client) -> Result<Self> {
        let text = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        Ok(Self::read(&text))
    }

    fn read(text: &str) -> Self {
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let Some(line) = line.strip_prefix("apiserver_request_total{") else { continue };
            let Some((labels, value)) = line.split_once("} ") else { continue };
            let label = |name: &str| {
                let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                value.map(|value| value.trim_end_matches('"').to_owned()).unwrap_or_default()
            };
            // What has no resource is this look itself, and probes.
            let (resource, count) = (label("resource"), value.parse::<f64>().unwrap_or(0.0) as u64);
            if !resource.is_empty() {
                *all.entry((label("verb"), resource)).or_default() += count;
            }
        }
        Self(all)
    }

    /// What has come since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let new = self.0.iter().map(|(key, count)| (key.clone(), count - before.0.get(key).unwrap_or(&0)));
        Self(new.filter(|(_, count)| *count > 0).collect())
    }

    /// How many there are.
    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those that are neither watches nor about leases.
    pub(super) fn needless(&self) -> Self {
        let is_needed = |verb: &str, resource: &str| verb == "WATCH" || resource == "leases";
        Self(
            self.0
                .iter()
                .filter(|((verb, resource), _)| !is_needed(verb, resource))
                .map(|(k, v)| (k.clone(), *v))
                .collect(),
        )
    }

    /// "12 PUT leases, 5 WATCH pods".
    pub(super) fn text(&self) -> String {
        let each = self.0.iter().map(|((verb, resource), count)| format!("{count} {verb} {resource}"));
        each.collect::<Vec<_>>().join(", ")
    }

    /// The same for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        self.0
            .iter()
            .map(|((verb, resource), count)| (format!("{verb} {resource}"), serde_json::Value::from(*count)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE apiserver_request_total counter
apiserver_request_total{code=\"200\",component=\"apiserver\",group=\"coordination.k8s.io\",resource=\"leases\",verb=\"PUT\"} 5
apiserver_request_total{code=\"200\",component=\"apiserver\",group=\"\",resource=\"\",verb=\"GET\"} 9";

    #[test]
    fn what_is_neither_a_watch_nor_a_lease_is_needless() {
        let before = Requests::read(BEFORE);
        let after = format!(
            "{}\napiserver_request_total{{code=\"0\",group=\"\",resource=\"pods\",verb=\"WATCH\"}} 1
apiserver_request_total{{code=\"200\",group=\"\",resource=\"pods\",verb=\"PATCH\"}} 2
apiserver_request_total{{code=\"409\",group=\"\",resource=\"pods\",verb=\"PATCH\"}} 1",
            BEFORE.replace("} 5", "} 17")
        );
        let since = Requests::read(&after).since(&before);
        assert_eq!((since.total(), since.text().as_str()), (16, "3 PATCH pods, 12 PUT leases, 1 WATCH pods"));
        assert_eq!(since.needless().text(), "3 PATCH pods");
    }
}
