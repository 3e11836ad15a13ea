//! What all connections share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use woodfrog_protocol::paths;

use crate::Config;
use crate::agent::Agent;
use crate::control::ControlDirs;
use crate::images::Images;
use crate::runtime::Runtime;

/// How many containers are remembered; others are looked up.
const REMEMBERED: usize = 4096;

/// The shim. Nothing in it is needed after a restart: the token of a container is one of its annotations.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) config: Config,
    pub(crate) agent: Agent,
    pub(crate) dirs: Arc<ControlDirs>,
    pub(crate) images: Images,
    pub(crate) runtime: Runtime,
    /// Wakes the sweeper.
    pub(crate) sweep: Notify,
    /// The tokens of containers by full ID, `None` for those that are not managed.
    tokens: Mutex<HashMap<String, Option<String>>>,
}

/// A managed container.
#[derive(Clone, Debug)]
pub(crate) struct Managed {
    /// The runtime's full ID.
    pub(crate) id: String,
    /// Name of its control directory.
    pub(crate) token: String,
}

impl Shim {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            agent: Agent::new(&config.agent),
            dirs: Arc::new(ControlDirs::new(&config.containers)),
            images: Images::default(),
            runtime: Runtime::new(&config.runtime, config.max_message_bytes),
            sweep: Notify::new(),
            tokens: Mutex::default(),
            config,
        }
    }

    /// Remembers a container.
    pub(crate) fn remember(&self, id: String, token: Option<String>) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= REMEMBERED {
            tokens.clear();
        }
        tokens.insert(id, token);
    }

    /// Forgets a container.
    pub(crate) fn forget(&self, id: &str) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The container that a client names, if it is managed. One that the runtime says nothing of is not: what
    /// follows is the runtime's business alone then.
    pub(crate) async fn managed(&self, id: &str) -> Option<Managed> {
        if let Some(token) = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned() {
            return token.map(|token| Managed { id: id.to_owned(), token });
        }
        let (id, annotations) = match self.runtime.container(id).await {
            Ok(found) => found?,
            Err(e) => {
                tracing::debug!(container_id = id, error = %e, "container is taken for one that is not managed");
                return None;
            }
        };
        let token = token_of(&annotations);
        self.remember(id.clone(), token.clone());
        token.map(|token| Managed { id, token })
    }

    /// Removes control directories whose container is gone, now and whenever the sweeper is woken; a runtime that does
    /// not answer is asked again later.
    pub(crate) async fn sweep_forever(&self) {
        loop {
            while let Err(e) = self.sweep_once().await {
                tracing::debug!(error = %e, "control directories cannot be swept yet");
                tokio::time::sleep(crate::deadlines::QUERY).await;
            }
            self.sweep.notified().await;
        }
    }

    async fn sweep_once(&self) -> Result<(), crate::runtime::QueryError> {
        // Before the list, so that a container created in between is not taken for a missing one.
        let candidates = self.dirs.candidates();
        if candidates.is_empty() {
            return Ok(());
        }
        let alive: HashSet<String> = self.runtime.annotations().await?.iter().filter_map(token_of).collect();
        for token in candidates.into_iter().filter(|token| !alive.contains(token)) {
            match self.dirs.remove(&token) {
                Ok(()) => tracing::info!(token, "removed the control directory of a container that is gone"),
                Err(e) => tracing::warn!(token, error = %e, "a control directory is left over"),
            }
        }
        Ok(())
    }
}

fn token_of(annotations: &HashMap<String, String>) -> Option<String> {
    annotations.get(paths::TOKEN_ANNOTATION).filter(|token| paths::is_token(token)).cloned()
}
