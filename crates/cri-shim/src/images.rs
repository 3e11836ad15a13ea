//! What an image says of itself: its command, and whether it is a checkpoint image.
//!
//! An image ID is a digest, so what was learnt of one stays true.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_cri::v1::{ImageSpec, ImageStatusResponse};
use serde::Deserialize;

use crate::runtime::{QueryError, Runtime};

/// The label that makes an image a checkpoint image; see `docs/format.md`.
const FORMAT_LABEL: &str = "dev.woodfrog.checkpoint.format";
/// How many images are remembered.
const REMEMBERED: usize = 1024;

/// What matters of an image's config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) checkpoint: bool,
}

/// Why an image's config is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the runtime does not know image {0}")]
    Unknown(String),
    #[error("the runtime gives no config of image {0}")]
    NoInfo(String),
    #[error("the runtime's config of image {image} cannot be read: {reason}")]
    Malformed { image: String, reason: String },
}

/// The images asked for so far, by ID.
#[derive(Debug, Default)]
pub(crate) struct Images {
    known: Mutex<HashMap<String, Arc<Image>>>,
}

impl Images {
    /// The config of `spec`'s image.
    ///
    /// # Errors
    /// The runtime does not answer, does not know the image, or says nothing of its config.
    pub(crate) async fn get(&self, runtime: &Runtime, spec: &ImageSpec) -> Result<Arc<Image>, ImageError> {
        if let Some(image) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&spec.image) {
            return Ok(image.clone());
        }
        let answer = runtime.image_status(spec.clone()).await?;
        let image = Arc::new(read(&spec.image, &answer)?);
        // A name may mean another image tomorrow, and only what was asked for by ID is found again.
        if spec.image.starts_with("sha256:") && answer.image.is_some_and(|found| found.id == spec.image) {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(spec.image.clone(), image.clone());
        }
        Ok(image)
    }
}

/// What containerd and CRI-O put under `info`; names as in the OCI image specification.
#[derive(Deserialize)]
struct Info {
    #[serde(rename = "imageSpec")]
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    labels: Option<HashMap<String, String>>,
}

fn read(name: &str, answer: &ImageStatusResponse) -> Result<Image, ImageError> {
    if answer.image.is_none() {
        return Err(ImageError::Unknown(name.to_owned()));
    }
    let info = answer.info.get("info").ok_or_else(|| ImageError::NoInfo(name.to_owned()))?;
    let info: Info = serde_json::from_str(info)
        .map_err(|e| ImageError::Malformed { image: name.to_owned(), reason: e.to_string() })?;
    let Config { entrypoint, cmd, labels } = info.spec.config;
    Ok(Image {
        entrypoint: entrypoint.unwrap_or_default(),
        cmd: cmd.unwrap_or_default(),
        checkpoint: labels.is_some_and(|labels| labels.contains_key(FORMAT_LABEL)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(info: &str) -> ImageStatusResponse {
        ImageStatusResponse {
            image: Some(k8s_cri::v1::Image::default()),
            info: [("info".to_owned(), info.to_owned())].into(),
        }
    }

    #[test]
    fn the_label_makes_a_checkpoint_image() {
        let json = r#"{"chainID":"sha256:1","imageSpec":{"architecture":"amd64","config":{"Env":["A=b"],
            "Entrypoint":["/app"],"Cmd":null,"Labels":{"dev.woodfrog.checkpoint.format":"1"}},"rootfs":{}}}"#;
        let expected = Image { entrypoint: vec!["/app".into()], cmd: vec![], checkpoint: true };
        assert_eq!(read("i", &answer(json)).unwrap(), expected);
    }

    #[test]
    fn an_ordinary_image_is_none_and_an_unreadable_one_is_an_error() {
        assert_eq!(read("i", &answer(r#"{"imageSpec":{}}"#)).unwrap(), Image::default());
        assert!(matches!(read("i", &answer("failed to marshal")), Err(ImageError::Malformed { .. })));
        assert!(matches!(read("i", &ImageStatusResponse::default()), Err(ImageError::Unknown(_))));
    }
}
