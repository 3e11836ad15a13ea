//! Who asks the API server.

use std::collections::BTreeMap;

/// The claim of a token that is bound to a node (`k8s.io/apiserver/pkg/authentication/serviceaccount`).
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// A user, with what its token says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
    pub(crate) node: Option<String>,
}

impl User {
    /// Who may do everything.
    #[must_use]
    pub fn admin() -> Self {
        Self::named("admin")
    }

    /// A person without rights, unless a binding gives some.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), groups: Vec::new(), node: None }
    }

    /// A service account.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::named(&format!("system:serviceaccount:{namespace}:{name}"))
    }

    /// The same user in one more group.
    #[must_use]
    pub fn in_group(mut self, group: &str) -> Self {
        self.groups.push(group.to_owned());
        self
    }

    /// The same user with a token that is bound to a node, as that of a pod is.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Whether this is who may do everything.
    pub(crate) fn is_admin(&self) -> bool {
        *self == Self::admin()
    }

    /// Namespace and name of a service account.
    pub(crate) fn account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// The test server's token: it says who the user is, and is believed.
    pub(crate) fn token(&self) -> String {
        let node = self.node.as_ref().map(|node| format!("@{node}")).unwrap_or_default();
        let groups =
            if self.groups.is_empty() { String::new() } else { format!("/{}", self.groups.join(",")) };
        format!("{}{node}{groups}", self.name)
    }

    /// Headers with which an administrator acts as this user ("User impersonation" in Kubernetes' documentation).
    pub(crate) fn impersonation(&self) -> Vec<(String, String)> {
        let mut groups = self.groups.clone();
        groups.push("system:authenticated".to_owned());
        if let Some((namespace, _)) = self.account() {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        let extra: BTreeMap<_, _> = self.node.iter().map(|node| (NODE_CLAIM, node)).collect();
        let user = ("impersonate-user".to_owned(), self.name.clone());
        let groups = groups.into_iter().map(|group| ("impersonate-group".to_owned(), group));
        let extra = extra
            .into_iter()
            .map(|(key, value)| (format!("impersonate-extra-{}", key.replace('/', "%2f")), value.clone()));
        std::iter::once(user).chain(groups).chain(extra).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_who_where_and_in_which_groups() {
        let agent = User::service_account("woodfrog", "agent").on_node("n1");
        assert_eq!(agent.token(), "system:serviceaccount:woodfrog:agent@n1");
        assert_eq!(User::named("eve").in_group("a").in_group("b").token(), "eve/a,b");
        assert_eq!(User::admin().token(), "admin");
    }

    #[test]
    fn an_impersonated_account_keeps_its_groups_and_its_node() {
        let headers = User::service_account("woodfrog", "agent").on_node("n1").impersonation();
        let has = |key: &str, value: &str| headers.contains(&(key.to_owned(), value.to_owned()));
        assert!(has("impersonate-user", "system:serviceaccount:woodfrog:agent"));
        assert!(has("impersonate-group", "system:serviceaccounts:woodfrog"));
        assert!(has("impersonate-extra-authentication.kubernetes.io%2fnode-name", "n1"));
    }
}
