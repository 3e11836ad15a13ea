//! containerd alone: the same container as a thawed one, made without Woodfrog, with a program that only waits. What it takes is
//! containerd's part of every start.

use anyhow::Result;
use async_trait::async_trait;
use woodfrog_testkubelet::PodSpec;

use super::{Contender, Place, Value, criu};
use crate::clock::{ms, now_us};
use crate::report::Metric;
use crate::workload::Workload;

/// See the module.
#[derive(Debug)]
pub(crate) struct Waiting {
    place: Place,
    spec: PodSpec,
}

impl Waiting {
    /// For containers of this image, which must have been pulled.
    pub(crate) fn new(place: Place, workload: &Workload, image: &str) -> Self {
        let mut spec = criu::waiting(place.pod(workload, "waiting"));
        image.clone_into(&mut spec.image);
        Self { place, spec }
    }
}

#[async_trait]
impl Contender for Waiting {
    async fn once(&self) -> Result<Vec<Value>> {
        let begin = now_us();
        let pod = self.place.direct.sandbox(self.spec.clone()).await?;
        let sandboxed = now_us();
        let container = pod.create().await?;
        let created = now_us();
        container.start().await?;
        let started = now_us();
        container.remove().await?;
        Ok(vec![
            (Metric::ContainerdSandbox, ms(begin, sandboxed)),
            (Metric::ContainerdCreate, ms(sandboxed, created)),
            (Metric::ContainerdStart, ms(created, started)),
        ])
    }
}
