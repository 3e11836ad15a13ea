//! Deleting an image's manifest. What it refers to goes when the registry collects its garbage; tags of it go with it.

use oci_client::Reference;
use oci_client::token_cache::RegistryTokenType;

use super::Registry;
use super::auth::{Access, Scope};
use super::error::{Cause, RegistryError, place};

const OPERATION: &str = "delete a manifest of";

/// What came of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone now.
    Deleted,
    /// It was gone before.
    Absent,
}

impl Registry {
    /// Deletes the manifest with this digest from an image's repository ("Content Management" of the OCI distribution
    /// specification).
    ///
    /// # Errors
    /// The registry deletes nothing, refuses to, or cannot be reached.
    pub async fn delete(&self, image: &Reference, digest: &str) -> Result<Deletion, RegistryError> {
        let scope = Scope { image, access: Access::Delete, also_read: None };
        match self.retry(&scope, || self.delete_manifest(&scope, digest)).await {
            Ok(()) => Ok(Deletion::Deleted),
            Err(RegistryError::NotFound { .. }) => Ok(Deletion::Absent),
            // Its answer is the same whether the manifest is there or not.
            Err(error @ RegistryError::DeletionUnsupported { .. }) => {
                match self.pull(&image.clone_with_digest(digest.to_owned())).await {
                    Err(RegistryError::NotFound { .. }) => Ok(Deletion::Absent),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn delete_manifest(&self, scope: &Scope<'_>, digest: &str) -> Result<(), RegistryError> {
        let image = scope.image;
        let token = self.log_in(scope).await?;
        let url = format!("{}{}/manifests/{digest}", self.url(image), image.repository());
        let request = self.http.delete(url);
        let request = match token {
            Some(RegistryTokenType::Bearer(token)) => request.bearer_auth(token.token()),
            Some(RegistryTokenType::Basic(user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        let send = async {
            let answer = request.send().await?;
            let status = answer.status();
            let body = String::from_utf8_lossy(&answer.bytes().await?).into_owned();
            Ok::<_, Cause>((status.as_u16(), body))
        };
        match self.request(image, OPERATION, send).await? {
            (200..300, _) => Ok(()),
            (status, body) if status == 405 || body.contains("UNSUPPORTED") => {
                let (registry, repository) = place(image);
                Err(RegistryError::DeletionUnsupported { registry, repository, status })
            }
            (status, body) => {
                let cause = Cause::Status(status, body);
                Err(RegistryError::of(image, OPERATION, cause, &self.options.credentials))
            }
        }
    }
}
