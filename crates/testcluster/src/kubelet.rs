//! The kubelet: watches the pods of its node and lets each be lived by a task of its own.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use woodfrog_testkubelet::Kubelet;
use woodfrog_testnode::Node;

use crate::worker;

/// What all tasks need.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) node: Node,
    /// Through the shim.
    pub(crate) cri: Kubelet,
}

/// Runs pods for as long as it is polled.
pub(crate) async fn run(context: Context) {
    let mine = format!("spec.nodeName={}", context.node.name());
    let pods = Api::<Pod>::all(context.client.clone());
    let mut events = pin!(watcher(pods, watcher::Config::default().fields(&mine)).default_backoff());
    let mut pods: HashMap<String, watch::Sender<Pod>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitDone) => pods.retain(|uid, _| listed.contains(uid)),
            // Who holds the other end learns from its end that the pod is no more.
            Ok(watcher::Event::Delete(pod)) => {
                pod.uid().and_then(|uid| pods.remove(&uid));
            }
            Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => {
                let Some(uid) = pod.uid() else { continue };
                listed.insert(uid.clone());
                if let Some(known) = pods.get(&uid) {
                    known.send_replace(pod);
                } else {
                    let (sender, receiver) = watch::channel(pod);
                    pods.insert(uid, sender);
                    tasks.spawn(worker::live(context.clone(), receiver));
                }
            }
            Err(e) => eprintln!("kubelet: cannot watch pods: {e}"),
        }
    }
}
