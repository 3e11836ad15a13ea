//! A cold start through containerd, from CreateContainer to the first answer.

use anyhow::Result;
use async_trait::async_trait;

use super::{Contender, PATIENCE, Place, Value};
use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};
use crate::report::Metric;
use crate::workload::Workload;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cold {
    place: Place,
    workload: Workload,
}

impl Cold {
    /// There is nothing to prepare.
    pub(crate) const fn new(place: Place, workload: Workload) -> Self {
        Self { place, workload }
    }
}

#[async_trait]
impl Contender for Cold {
    async fn once(&self) -> Result<Vec<Value>> {
        let place = &self.place;
        let pod = place.direct.sandbox(place.pod(&self.workload, "cold")).await?;
        let answer = FirstAnswer::from(&place.node, pod.ip, PATIENCE);
        let start = now_us();
        let container = pod.create().await?;
        container.start().await?;
        let mut values = vec![(Metric::Response, ms(start, answer.at().await?))];
        values.extend(place.usage(container.pid().await?)?);
        container.remove().await?;
        Ok(values)
    }
}
