//! What the shim tells the agent and asks of it. The agent may be absent, slow or broken: every question has a deadline,
//! and no answer is waited for twice.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use woodfrog_protocol::agent::{
    ContainerCreated, ContainerId, Request, Response, Started, Token, Wake, WokenBy, request, response,
};
use woodfrog_protocol::frame::{self, Decoder, FrameError};

use crate::deadlines;

/// Why the agent's word is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("the agent's socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("the agent did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the agent's answer: {0}")]
    Frame(#[from] FrameError),
    #[error("the agent closed the connection without an answer")]
    Closed,
    #[error("the agent says: {0}")]
    Refused(String),
    #[error("the agent gave an answer to another question")]
    Unexpected,
}

/// The agent behind its socket.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// A managed container was created; returns once its init can reach the agent.
    pub(crate) async fn created(
        &self,
        token: &str,
        container_id: &str,
        checkpoint_image: bool,
    ) -> Result<(), AgentError> {
        let (token, container_id) = (token.to_owned(), container_id.to_owned());
        let created = ContainerCreated { token, container_id, checkpoint_image };
        self.tell(request::Kind::ContainerCreated(created), deadlines::CREATED).await
    }

    /// Returns when the container is thawed, cold or dormant.
    pub(crate) async fn await_start(&self, token: &str, deadline: Duration) -> Result<Started, AgentError> {
        let question = request::Kind::AwaitStart(Token { token: token.to_owned() });
        match self.ask(question, deadline).await? {
            response::Kind::Started(started) => Ok(started),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Wakes a container; returns when it is awake.
    pub(crate) async fn wake(&self, container_id: &str, reason: &str) -> Result<(), AgentError> {
        let (container, reason) = (container_id.to_owned(), reason.to_owned());
        let wake = Wake { container, reason, by: WokenBy::Visit.into() };
        match self.ask(request::Kind::Wake(wake), deadlines::START).await? {
            response::Kind::Started(_) => Ok(()),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// The client wants this container stopped.
    pub(crate) async fn stopping(&self, container_id: &str) -> Result<(), AgentError> {
        let id = ContainerId { container_id: container_id.to_owned() };
        self.tell(request::Kind::ContainerStopping(id), deadlines::TOLD).await
    }

    /// The container is gone.
    pub(crate) async fn removed(&self, container_id: &str) -> Result<(), AgentError> {
        let id = ContainerId { container_id: container_id.to_owned() };
        self.tell(request::Kind::ContainerRemoved(id), deadlines::TOLD).await
    }

    async fn tell(&self, what: request::Kind, deadline: Duration) -> Result<(), AgentError> {
        match self.ask(what, deadline).await? {
            response::Kind::Ok(_) => Ok(()),
            _ => Err(AgentError::Unexpected),
        }
    }

    async fn ask(&self, question: request::Kind, deadline: Duration) -> Result<response::Kind, AgentError> {
        match tokio::time::timeout(deadline, self.exchange(question)).await {
            Ok(Ok(response::Kind::Error(error))) => Err(AgentError::Refused(error.message)),
            Ok(answer) => answer,
            Err(_) => Err(AgentError::Timeout(deadline)),
        }
    }

    async fn exchange(&self, question: request::Kind) -> Result<response::Kind, AgentError> {
        let socket = |source| AgentError::Socket { path: self.socket.clone(), source };
        let question = frame::encode(&Request { kind: Some(question) })?;
        let mut stream = UnixStream::connect(&self.socket).await.map_err(socket)?;
        stream.write_all(&question).await.map_err(socket)?;
        let mut decoder = Decoder::default();
        let mut buffer = [0; 4096];
        loop {
            while let Some(Response { kind }) = decoder.pop()? {
                match kind {
                    Some(response::Kind::Progress(_)) => {}
                    Some(answer) => return Ok(answer),
                    // A kind of a newer release.
                    None => return Err(AgentError::Unexpected),
                }
            }
            match stream.read(&mut buffer).await.map_err(socket)? {
                0 => return Err(AgentError::Closed),
                n => decoder.push(&buffer[..n]),
            }
        }
    }
}
