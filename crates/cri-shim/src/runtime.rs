//! The shim's own questions to the runtime.

use std::collections::HashMap;
use std::path::Path;

use http::Request;
use k8s_cri::v1::{
    ContainerStatusRequest, ContainerStatusResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListContainersRequest, ListContainersResponse, StatusRequest, StatusResponse,
};
use prost::Message;

use crate::pipe::Verdict;
use crate::upstream::Upstream;
use crate::{deadlines, exchange, grpc};

/// Why the runtime gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("{method}: no answer from the runtime within {} s", deadlines::QUERY.as_secs())]
    Timeout { method: &'static str },
    #[error("{method}: {message}")]
    Broken { method: &'static str, message: String },
    #[error("{method}: status {code} from the runtime: {message}")]
    Status { method: &'static str, code: u16, message: String },
    #[error("{method}: the runtime's answer cannot be read: {reason}")]
    Decode { method: &'static str, reason: String },
}

/// A connection of the shim's own.
#[derive(Debug)]
pub(crate) struct Runtime {
    upstream: Upstream,
    max: usize,
}

impl Runtime {
    pub(crate) fn new(socket: &Path, max: usize) -> Self {
        Self { upstream: Upstream::new(socket), max }
    }

    /// What is known of an image, with its config.
    pub(crate) async fn image_status(&self, image: ImageSpec) -> Result<ImageStatusResponse, QueryError> {
        let question = ImageStatusRequest { image: Some(image), verbose: true };
        self.ask("/runtime.v1.ImageService/ImageStatus", &question).await
    }

    /// The full ID and the annotations of a container, which may be named by the beginning of its ID.
    pub(crate) async fn container(
        &self,
        id: &str,
    ) -> Result<Option<(String, HashMap<String, String>)>, QueryError> {
        let question = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer: ContainerStatusResponse =
            self.ask("/runtime.v1.RuntimeService/ContainerStatus", &question).await?;
        Ok(answer.status.map(|status| (status.id, status.annotations)))
    }

    /// The annotations of all containers.
    pub(crate) async fn annotations(&self) -> Result<Vec<HashMap<String, String>>, QueryError> {
        let question = ListContainersRequest::default();
        let answer: ListContainersResponse =
            self.ask("/runtime.v1.RuntimeService/ListContainers", &question).await?;
        Ok(answer.containers.into_iter().map(|container| container.annotations).collect())
    }

    /// The runtime's configuration as JSON, as containerd gives it.
    pub(crate) async fn configuration(&self) -> Result<Option<String>, QueryError> {
        let question = StatusRequest { verbose: true };
        let mut answer: StatusResponse = self.ask("/runtime.v1.RuntimeService/Status", &question).await?;
        Ok(answer.info.remove("config"))
    }

    async fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        question: &impl Message,
    ) -> Result<A, QueryError> {
        let head: Request<()> = exchange::question(method);
        let body = grpc::frame(&question.encode_to_vec());
        let call = exchange::call(&self.upstream, head, body, self.max);
        let answer = match tokio::time::timeout(deadlines::QUERY, call).await {
            Err(_) => return Err(QueryError::Timeout { method }),
            Ok(Ok(answer)) => answer,
            Ok(Err(Verdict::Status(status))) => {
                return Err(QueryError::Broken { method, message: status.message });
            }
            Ok(Err(Verdict::Reset(reason))) => {
                return Err(QueryError::Broken {
                    method,
                    message: format!("the runtime reset the call: {reason}"),
                });
            }
        };
        match answer.status() {
            Some(0) => {}
            code => {
                // 2 is "unknown", which an answer without a status is.
                let message = grpc::message_of(answer.head.headers(), answer.trailers.as_ref());
                return Err(QueryError::Status { method, code: code.unwrap_or(2), message });
            }
        }
        let decode = |reason: String| QueryError::Decode { method, reason };
        let message = grpc::single_message(&answer.body)
            .ok_or_else(|| decode("not one uncompressed message".into()))?;
        A::decode(message).map_err(|e| decode(e.to_string()))
    }
}
