//! containerd's own checkpoint and restore through CRI: `CheckpointContainer` writes an archive, and `CreateContainer` with the
//! archive's path as its image restores it (containerd 2.1 to 2.3).

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use k8s_cri::v1::CheckpointContainerRequest;

use super::{Contender, PATIENCE, Place, Value};
use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};
use crate::report::Metric;
use crate::workload::{State, Workload};

/// See the module.
#[derive(Debug)]
pub(crate) struct Containerd {
    place: Place,
    workload: Workload,
    directory: String,
    state: State,
}

impl Containerd {
    /// Warms the application up and checkpoints it.
    pub(crate) async fn prepare(place: Place, workload: Workload) -> Result<Self> {
        let directory = place.directory(&workload, "containerd")?;
        let spec = place.pod_for_runtime(&workload, "containerd-dump");
        let container = place.direct.run(spec.clone()).await?;
        FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
        let state = workload.warm_up(&place.node, container.ip())?;
        let request = CheckpointContainerRequest {
            container_id: container.id.clone(),
            location: archive(&directory),
            timeout: Duration::from_secs(60).as_secs().cast_signed(),
        };
        let checkpointed = place.direct.runtime.clone().checkpoint_container(request).await;
        place.copy(&spec.tmp_dir(), &format!("{directory}/tmp"))?;
        container.remove().await?;
        checkpointed.context("CheckpointContainer")?;
        Ok(Self { place, workload, directory, state })
    }
}

#[async_trait]
impl Contender for Containerd {
    async fn once(&self) -> Result<Vec<Value>> {
        let place = &self.place;
        let mut spec = place.pod_for_runtime(&self.workload, "containerd");
        spec.image = archive(&self.directory);
        let tmp = spec.tmp_dir();
        let pod = place.direct.sandbox(spec).await?;
        place.copy(&format!("{}/tmp", self.directory), &tmp)?;
        let answer = FirstAnswer::from(&place.node, pod.ip, PATIENCE);
        let start = now_us();
        let restored = async {
            let container = pod.create().await.context("CreateContainer")?;
            container.start().await.context("StartContainer")?;
            let restored = ms(start, now_us());
            let mut values = vec![
                (Metric::Restored, restored),
                (Metric::Full, restored),
                (Metric::Response, ms(start, answer.at().await?)),
            ];
            // Whatever restores it is no part of the container, so its time is not in the container's.
            values.extend(
                place.usage(container.pid().await?)?.into_iter().filter(|(metric, _)| *metric != Metric::Cpu),
            );
            self.state.check(&place.node, pod.ip)?;
            Ok(values)
        };
        let restored = restored.await;
        pod.remove().await?;
        restored
    }

    async fn clean(&self) -> Result<()> {
        self.place.node.run("rm", &["-rf", &self.directory])?;
        Ok(())
    }
}

fn archive(directory: &str) -> String {
    format!("{directory}/checkpoint.tar")
}
