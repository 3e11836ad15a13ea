//! Leader election by a Lease: of several replicas one works, the others wait.
//!
//! ```text
//!   free, expired or given up ──► held by us ──renewed every RENEW──► …
//!                                    │ not renewed within TERM - GRACE, or somebody else's
//!                                    ▼
//!                                  lost: the process ends, and begins anew as one that waits
//! ```
//!
//! The API server's optimistic locking decides who gets it. Clocks of replicas need not agree: a holder is believed dead
//! when its renewals have not changed for [`TERM`] by our own clock.

use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use woodfrog_api::names;

/// How long a lease holds without a renewal.
const TERM: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const RENEW: Duration = Duration::from_secs(5);
/// A holder that could not renew stops so long before others may begin.
const GRACE: Duration = Duration::from_secs(4);

/// A lease, held or wished for.
pub(crate) struct Leader {
    leases: Api<Lease>,
    identity: String,
}

impl Leader {
    /// `identity` is unique among the replicas.
    pub(crate) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity: identity.to_owned() }
    }

    /// Waits until we hold the lease.
    pub(crate) async fn elected(&self) {
        // The renewal that we have seen last, and when.
        let mut seen: Option<(LeaseSpec, Instant)> = None;
        loop {
            match self.try_take(&mut seen).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => warn!("cannot take the lease: {e}"),
            }
            sleep(RENEW).await;
        }
    }

    async fn try_take(&self, seen: &mut Option<(LeaseSpec, Instant)>) -> kube::Result<bool> {
        let Some(lease) = self.leases.get_opt(names::LEASE).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(names::LEASE.into()), ..ObjectMeta::default() },
                spec: Some(self.spec(0)),
            };
            return taken(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let free = holder.is_empty() || holder == self.identity;
        let expired = match seen {
            Some((known, since)) if *known == spec => since.elapsed() >= TERM,
            _ => {
                *seen = Some((spec.clone(), Instant::now()));
                false
            }
        };
        if !free && !expired {
            return Ok(false);
        }
        info!(former = %holder, "takes the lease");
        let lease = Lease { spec: Some(self.spec(spec.lease_transitions.unwrap_or(0) + 1)), ..lease };
        taken(self.leases.replace(names::LEASE, &PostParams::default(), &lease).await)
    }

    /// Renews the lease for as long as that works; returns when it is lost.
    pub(crate) async fn keep(&self) -> Result<()> {
        let mut renewed = Instant::now();
        // As it was after the last renewal, so that a renewal is one request.
        let mut lease = None;
        loop {
            sleep(RENEW).await;
            let left = (TERM - GRACE).saturating_sub(renewed.elapsed());
            match timeout(left, self.renew(&mut lease)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => bail!("another operator has taken the lease"),
                Ok(Err(e)) => warn!("cannot renew the lease: {e}"),
                Err(_) => {}
            }
            if renewed.elapsed() >= TERM - GRACE {
                bail!("the lease could not be renewed in time");
            }
        }
    }

    /// `known`: the lease, if it is known; nothing afterwards, if it was changed by others or a renewal failed.
    async fn renew(&self, known: &mut Option<Lease>) -> kube::Result<bool> {
        if let Some(lease) = known.take() {
            match self.renewed(lease).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                result => {
                    *known = Some(result?);
                    return Ok(true);
                }
            }
        }
        let lease = self.leases.get(names::LEASE).await?;
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(&self.identity) {
            return Ok(false);
        }
        *known = Some(self.renewed(lease).await?);
        Ok(true)
    }

    async fn renewed(&self, mut lease: Lease) -> kube::Result<Lease> {
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        self.leases.replace(names::LEASE, &PostParams::default(), &lease).await
    }

    /// Gives the lease up, so that another replica need not wait for its end.
    pub(crate) async fn resign(&self) {
        let resigned = async {
            let lease = self.leases.get(names::LEASE).await?;
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                let lease = Lease { spec: Some(LeaseSpec { holder_identity: None, ..spec }), ..lease };
                self.leases.replace(names::LEASE, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Ok(Err(e)) = timeout(GRACE, resigned).await {
            warn!("cannot give the lease up: {e}");
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(TERM.as_secs() as i32),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// Somebody else was faster: no error.
fn taken(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}
