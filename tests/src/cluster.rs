//! An API server with Woodfrog's resources, for the tests in this package.

use anyhow::Result;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, WarmPool};
use woodfrog_testapi::{ApiServer, Need, User};

/// A namespace of its own on the server that the tests of one program share.
pub struct Cluster {
    /// Who may do everything.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl Cluster {
    /// Nothing where there is no API server; the reason has been printed then.
    ///
    /// # Errors
    /// The server does not start.
    ///
    /// # Panics
    /// There is none, and `WOODFROG_REQUIRE` names `api`.
    pub async fn new(name: &str) -> Result<Option<Self>> {
        if !Need::met() {
            return Ok(None);
        }
        let server = ApiServer::shared().await?;
        let client = server.client(&User::admin()).await?;
        Ok(Some(Self { client, namespace: server.namespace(name).await? }))
    }

    /// Objects as JSON, so that they may be as wrong as a test wants them.
    pub fn objects<K: kube::Resource<DynamicType = ()>>(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<K>(&()))
    }

    /// Its Checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> Api<Checkpoint> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Its WarmPools.
    #[must_use]
    pub fn pools(&self) -> Api<WarmPool> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// What the server says of a specification, without keeping it.
    ///
    /// # Errors
    /// It is refused.
    pub async fn try_spec<K: kube::Resource<DynamicType = ()>>(
        &self,
        spec: Value,
    ) -> kube::Result<DynamicObject> {
        let object = DynamicObject::new("tried", &ApiResource::erase::<K>(&())).data(json!({ "spec": spec }));
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        self.objects::<K>().create(&dry, &object).await
    }

    /// Creates an object.
    ///
    /// # Errors
    /// It is refused.
    pub async fn make<K: kube::Resource<DynamicType = ()>>(
        &self,
        name: &str,
        spec: Value,
    ) -> Result<DynamicObject> {
        let object = DynamicObject::new(name, &ApiResource::erase::<K>(&())).data(json!({ "spec": spec }));
        Ok(self.objects::<K>().create(&PostParams::default(), &object).await?)
    }

    /// Changes an object as `kubectl patch --type merge` does.
    ///
    /// # Errors
    /// The change is refused.
    pub async fn change<K: kube::Resource<DynamicType = ()>>(
        &self,
        name: &str,
        patch: Value,
    ) -> kube::Result<DynamicObject> {
        self.objects::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    /// Applies a part of a Checkpoint's status.
    ///
    /// # Errors
    /// It is refused, or conflicts with what another manager applied.
    pub async fn apply_status(&self, name: &str, manager: &str, status: Value) -> kube::Result<Checkpoint> {
        let object = json!({"apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint", "status": status});
        self.checkpoints().patch_status(name, &PatchParams::apply(manager), &Patch::Apply(object)).await
    }

    /// What the server answers to a plain request.
    ///
    /// # Errors
    /// It is refused, or the answer is not JSON.
    pub async fn get(&self, path: &str, accept: &str) -> Result<Value> {
        let request = http::Request::get(path).header("accept", accept).body(Vec::new())?;
        Ok(serde_json::from_str(&self.client.request_text(request).await?)?)
    }

    /// Where the server has the objects of a resource.
    #[must_use]
    pub fn path(&self, plural: &str) -> String {
        format!("/apis/woodfrog.dev/v1alpha1/namespaces/{}/{plural}", self.namespace)
    }
}

/// A Checkpoint with nothing but what it must have.
#[must_use]
pub fn checkpoint() -> Value {
    json!({"source": {"podName": "web-0"}, "image": "registry.example/shop/web:warm"})
}

/// The same with fields set, or taken away by null.
#[must_use]
pub fn checkpoint_with(fields: Value) -> Value {
    merged(checkpoint(), fields)
}

/// A WarmPool with nothing but what it must have, and fields set.
#[must_use]
pub fn pool_with(fields: Value) -> Value {
    merged(json!({"checkpointRef": {"name": "web"}}), fields)
}

/// An object with fields set, or taken away by null.
#[must_use]
pub fn merged(mut object: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().into_iter().flatten() {
        object[name] = value.clone();
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(name));
        }
    }
    object
}
