//! Applications run on nodes, and nodes reach each other.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use woodfrog_testkubelet::{Kubelet, PodSpec, Security, http};
use woodfrog_testnode::{App, Need, Node, Options};

const START: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn node_every_application_answers_locked_down_and_as_root() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let node =
        Node::up("applications", &Options { images: App::ALL.to_vec(), ..Options::default() })?.into_guard();
    let kubelet = Kubelet::connect(&node, &node.containerd_socket()).await?;
    for app in App::ALL {
        let start = Instant::now();
        kubelet.pull(&app.reference()).await?;
        eprintln!("{}: pulled in {:?}", app.name(), start.elapsed());
        for security in [Security::Restricted, Security::Root] {
            let name = format!("{}-{}", app.name(), if security == Security::Root { "root" } else { "user" });
            let container = kubelet.run(PodSpec::new(&name, &app.reference()).security(security)).await?;
            let start = Instant::now();
            let page = container.wait("/", START)?;
            eprintln!("{name}: first answer after {:?}", start.elapsed());
            ensure!(page.contains("<!doctype html>"), "{name}: {page}");
            let counts = [container.get("/count")?, container.get("/count")?, container.get("/count")?];
            ensure!(counts.iter().map(|count| count.trim()).eq(["1", "2", "3"]), "{name}: {counts:?}");
            let sums = [container.get("/checksum")?, container.get("/checksum")?];
            ensure!(sums[0] == sums[1] && sums[0].trim().len() >= 8, "{name}: {sums:?}");
            let (code, user) = container
                .exec(&["/bin/sh", "-c", "id -u; touch /srv/x 2>/dev/null && echo writable"])
                .await?;
            let expected = if security == Security::Root { (0, "0\nwritable") } else { (1, "1000") };
            ensure!((code, user.as_str()) == expected, "{name}: {code} {user}");
            container.remove().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn node_reaches_the_pods_and_images_of_another() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let first =
        Node::up("first", &Options { images: vec![App::Synthetic], ..Options::default() })?.into_guard();
    let second = Node::up("second", &Options::default())?.into_guard();
    assert_ne!(first.address(), second.address());

    let (a, b) = (
        Kubelet::connect(&first, &first.containerd_socket()).await?,
        Kubelet::connect(&second, &second.containerd_socket()).await?,
    );
    let image = App::Synthetic.reference();
    a.pull(&image).await?;
    b.pull(&image).await?;
    let (on_a, on_b) = (a.run(PodSpec::new("a", &image)).await?, b.run(PodSpec::new("b", &image)).await?);
    assert_ne!(on_a.ip(), on_b.ip());
    http::wait(&second, on_a.ip(), "/count", START)?;
    http::wait(&first, on_b.ip(), "/count", START)?;
    assert_eq!(on_a.get("/checksum")?, on_b.get("/checksum")?);

    // The hub outlives the first node that needed it.
    drop(first);
    second.run("curl", &["--fail", "--silent", "http://127.0.0.1:5000/v2/synthetic/tags/list"])?;
    let third = Node::up("third", &Options::default())?.into_guard();
    http::wait(&third, on_b.ip(), "/count", START)?;
    Ok(())
}
