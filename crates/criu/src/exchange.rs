//! A dump or restore under way: notifications that are acknowledged or refused, then the answer.

use std::os::fd::OwnedFd;

use crate::failure::{CriuError, Operation};
use crate::rpc::{Kind, Notify, Options, Request, Response};
use crate::worker::Worker;

/// What CRIU said next.
pub(crate) enum Heard {
    /// It waits at a notification.
    Stage(Notify, Option<OwnedFd>),
    /// It has succeeded.
    Done(Response),
}

#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) worker: Worker,
    operation: Operation,
    /// CRIU waits for our word on a notification.
    owed: bool,
}

impl Exchange {
    pub(crate) async fn start(
        worker: Worker,
        operation: Operation,
        kind: Kind,
        options: Options,
    ) -> Result<Self, CriuError> {
        let request = Request { kind: kind.into(), options: Some(options), ..Request::default() };
        let exchange = Self { worker, operation, owed: false };
        exchange.send(&request).await?;
        Ok(exchange)
    }

    /// A request without stages: the answer to it.
    pub(crate) async fn ask(
        worker: Worker,
        operation: Operation,
        request: Request,
    ) -> Result<Response, CriuError> {
        let mut exchange = Self { worker, operation, owed: false };
        exchange.send(&request).await?;
        match exchange.next().await? {
            Heard::Done(response) => Ok(response),
            Heard::Stage(..) => Err(CriuError::unexpected(operation, "it notified of a stage")),
        }
    }

    /// Acknowledges the notification that CRIU waits at, if any, and waits for what comes next.
    pub(crate) async fn next(&mut self) -> Result<Heard, CriuError> {
        if self.owed {
            // Before its first stage CRIU makes no process; those that it makes are to be born in its cgroups.
            self.moved().await?;
        }
        self.answer(true).await?;
        let operation = self.operation;
        let received =
            self.worker.receive().await.map_err(|source| CriuError::Worker { operation, source })?;
        let Some((response, descriptors)) = received else { return Err(self.died().await) };
        if response.kind == i32::from(Kind::Notify) {
            self.owed = true;
            let notify = response.notify.unwrap_or_default();
            return Ok(Heard::Stage(notify, descriptors.into_iter().next()));
        }
        let status = self.worker.wait().await;
        if response.success {
            // The worker has ended: whatever it has restored is now its container's.
            status.map_err(|source| CriuError::Worker { operation, source })?;
            return Ok(Heard::Done(response));
        }
        let log = self.worker.log();
        let message = response.message.as_deref();
        Err(CriuError::failed(operation, response.errno, message, &log, self.worker.container()))
    }

    /// Waits until the worker is in its cgroups.
    pub(crate) async fn moved(&mut self) -> Result<(), CriuError> {
        let operation = self.operation;
        self.worker.moved().await.map_err(|source| CriuError::Worker { operation, source })
    }

    /// Refuses the notification that CRIU waits at, and waits until it has undone everything and ended.
    pub(crate) async fn refuse(mut self) -> Result<(), CriuError> {
        self.answer(false).await?;
        let operation = self.operation;
        let worker = |source| CriuError::Worker { operation, source };
        // It may notify of its cleaning up (network-unlock), which wants an answer too.
        while let Some((response, _)) = self.worker.receive().await.map_err(worker)? {
            if response.kind != i32::from(Kind::Notify) {
                break;
            }
            self.owed = true;
            self.answer(false).await?;
        }
        self.worker.wait().await.map_err(worker)?;
        Ok(())
    }

    /// Waits until the worker has ended, without a word to it.
    pub(crate) async fn ended(&mut self) -> Result<(), CriuError> {
        let operation = self.operation;
        self.worker.wait().await.map_err(|source| CriuError::Worker { operation, source })?;
        Ok(())
    }

    async fn answer(&mut self, success: bool) -> Result<(), CriuError> {
        if self.owed {
            let kind = Kind::Notify.into();
            self.send(&Request { kind, notify_success: Some(success), ..Request::default() }).await?;
            self.owed = false;
        }
        Ok(())
    }

    async fn send(&self, request: &Request) -> Result<(), CriuError> {
        let operation = self.operation;
        self.worker.send(request).await.map_err(|source| CriuError::Worker { operation, source })
    }

    async fn died(&mut self) -> CriuError {
        let operation = self.operation;
        let status = match self.worker.wait().await {
            Ok(status) => status,
            Err(source) => return CriuError::Worker { operation, source },
        };
        let signal = status.as_ref().and_then(|status| status.terminating_signal());
        let exit = status.as_ref().and_then(|status| status.exit_status());
        CriuError::died(operation, signal, exit, &self.worker.log())
    }
}
