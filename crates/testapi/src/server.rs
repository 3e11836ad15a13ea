//! The API server as tests see it: clients and kubeconfigs for any user.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::error::{Context as _, refused};
use crate::local::{Kind, Local, MASTER_TOKEN};
use crate::origin::{Origin, built};
use crate::{Error, User};

/// An API server. One of our own ends when this is dropped, or when the process ends in whatever way.
pub struct ApiServer {
    kind: Option<Kind>,
    admin: Kubeconfig,
    local: Option<Local>,
}

impl ApiServer {
    /// Starts one, or connects to the cluster that the environment names (see the crate's documentation). No resources of ours are
    /// installed.
    ///
    /// # Errors
    /// It cannot be built, does not come up, or its kubeconfig cannot be read.
    pub async fn start() -> Result<Self, Error> {
        let (dir, kind) = match Origin::choose() {
            Origin::Cluster(path) => {
                let admin = Kubeconfig::read_from(path)?;
                return Ok(Self { kind: None, admin, local: None });
            }
            Origin::Assets(dir) => (dir, Kind::Real),
            Origin::Built(dir) => (dir, Kind::Test),
            Origin::Debian => (built()?, Kind::Test),
        };
        let local = Local::start(&dir, kind).await?;
        let admin = local_config(&local, admin_token(kind))?;
        Ok(Self { kind: Some(kind), admin, local: Some(local) })
    }

    /// One for all tests of this process, with our resources installed.
    ///
    /// # Errors
    /// As [`ApiServer::start`] and [`crate::install_crds`].
    pub async fn shared() -> Result<&'static Self, Error> {
        static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
        SHARED
            .get_or_try_init(|| async {
                let server = Self::start().await?;
                crate::install_crds(&server.client(&User::admin()).await?).await?;
                Ok(server)
            })
            .await
    }

    /// A client of a user. Users other than the administrator are impersonated where the server is a real one.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub async fn client(&self, user: &User) -> Result<Client, Error> {
        let mut config = config(self.config_of(user)?).await?;
        if !user.is_admin() && self.kind != Some(Kind::Test) {
            for (name, value) in user.impersonation() {
                let bad = |error: String| Error::Credentials(error);
                let name = HeaderName::try_from(name).map_err(|error| bad(error.to_string()))?;
                let value = HeaderValue::try_from(value).map_err(|error| bad(error.to_string()))?;
                config.headers.push((name, value));
            }
        }
        Client::try_from(config).map_err(refused("make a client"))
    }

    /// A kubeconfig file of a user, for programs; it lies with the server's data, or in the directory for temporary files where the
    /// server is a cluster. On a real server the user must be the administrator or a service account that
    /// exists, and a node that exists where it is bound to one.
    ///
    /// # Errors
    /// There can be no token for the user, or the file cannot be written.
    pub async fn kubeconfig(&self, user: &User) -> Result<PathBuf, Error> {
        let mut config = self.config_of(user)?;
        if !user.is_admin() && self.kind != Some(Kind::Test) {
            let token = self.requested_token(user).await?;
            for named in &mut config.auth_infos {
                named.auth_info = Some(from_json(json!({ "token": token }))?);
            }
        }
        let dir = self.directory().map_or_else(std::env::temp_dir, Path::to_path_buf);
        // For its owner's eyes only, as every temporary file of this crate.
        let mut file = tempfile::Builder::new()
            .prefix("woodfrog-kubeconfig-")
            .suffix(".json")
            .tempfile_in(&dir)
            .file("create a file in", &dir)?;
        file.write_all(&to_json(&config)?).file("write", file.path())?;
        let (_, path) = file.keep().map_err(|error| error.error).file("keep a file in", dir)?;
        Ok(path)
    }

    /// A new namespace, whose name begins with `prefix`. It stays as long as the server does.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn namespace(&self, prefix: &str) -> Result<String, Error> {
        let api = Api::<Namespace>::all(self.client(&User::admin()).await?);
        let metadata = ObjectMeta { generate_name: Some(format!("{prefix}-")), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let made =
            api.create(&PostParams::default(), &namespace).await.map_err(refused("create a namespace"))?;
        Ok(made.name_any())
    }

    /// Where a server of our own keeps its data and logs; nothing for a cluster.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.local.as_ref().map(|local| local.dir.as_path())
    }

    /// Whether core types have the validation and defaults of Kubernetes, and accounts have tokens.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.kind != Some(Kind::Test)
    }

    fn config_of(&self, user: &User) -> Result<Kubeconfig, Error> {
        match &self.local {
            Some(local) if self.kind == Some(Kind::Test) => local_config(local, &user.token()),
            _ => Ok(self.admin.clone()),
        }
    }

    async fn requested_token(&self, user: &User) -> Result<String, Error> {
        let (namespace, name) = user.account().ok_or_else(|| Error::NoToken(user.name.clone()))?;
        let client = self.client(&User::admin()).await?;
        let mut bound = None;
        if let Some(node) = &user.node {
            let found = Api::<Node>::all(client.clone())
                .get(node)
                .await
                .map_err(refused(format!("get node {node}")))?;
            bound = Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.clone()),
                uid: found.uid(),
            });
        }
        let spec = TokenRequestSpec { bound_object_ref: bound, ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let accounts = Api::<ServiceAccount>::namespaced(client, namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(refused(format!("make a token for {}", user.name)))?;
        answer.status.and_then(|status| status.token).ok_or_else(|| Error::NoToken(user.name.clone()))
    }
}

/// Asks a server that has just been started whether it is ready; the answer if it is not.
pub(crate) async fn ready(local: &Local) -> Result<(), String> {
    let ask = async {
        let kubeconfig = local_config(local, admin_token(local.kind)).map_err(|error| error.to_string())?;
        let config = config(kubeconfig).await.map_err(|error| error.to_string())?;
        let client = Client::try_from(config).map_err(|error| error.to_string())?;
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
        client.request_text(request).await.map(drop).map_err(|error| error.to_string())
    };
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(answer) => answer,
        Err(_) => Err("it does not answer".to_owned()),
    }
}

fn admin_token(kind: Kind) -> &'static str {
    match kind {
        Kind::Real => MASTER_TOKEN,
        Kind::Test => "admin",
    }
}

async fn config(kubeconfig: Kubeconfig) -> Result<Config, Error> {
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn local_config(local: &Local, token: &str) -> Result<Kubeconfig, Error> {
    let server = format!("https://127.0.0.1:{}", local.port);
    from_json(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": local.certificate()}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }))
}

fn from_json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Credentials(error.to_string()))
}

fn to_json(config: &Kubeconfig) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(config).map_err(|error| Error::Credentials(error.to_string()))
}
