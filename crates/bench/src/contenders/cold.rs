//! A cold start through containerd, from CreateContainer to the first answer.

use anyhow::Result;
use async_trait::async_trait;
use woodfrog_testnode::App;

use super::{Contender, PATIENCE, Place, Value};
use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};
use crate::report::Metric;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cold {
    place: Place,
    app: App,
}

impl Cold {
    /// There is nothing to prepare.
    pub(crate) const fn new(place: Place, app: App) -> Self {
        Self { place, app }
    }
}

#[async_trait]
impl Contender for Cold {
    async fn once(&self) -> Result<Vec<Value>> {
        let place = &self.place;
        let pod = place.direct.sandbox(place.pod(self.app, "cold")).await?;
        let answer = FirstAnswer::from(&place.node, pod.ip, PATIENCE);
        let start = now_us();
        let container = pod.create().await?;
        container.start().await?;
        let value = ms(start, answer.at().await?);
        container.remove().await?;
        Ok(vec![(Metric::Cold, value)])
    }
}
