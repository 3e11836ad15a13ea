//! The API server itself: it comes up, believes who asks, and leaves nothing behind.
#![forbid(unsafe_code)]

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use woodfrog_api::Checkpoint;
use woodfrog_testapi::{ApiServer, Need, User};

#[tokio::test]
async fn api_a_server_serves_our_resources_to_those_who_may_read_them() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let server = ApiServer::shared().await?;
    let admin = server.client(&User::admin()).await?;
    ensure!(Api::<Checkpoint>::all(admin).list(&ListParams::default()).await.is_ok());

    let eve = server.client(&User::named("eve")).await?;
    let refused = Api::<Checkpoint>::all(eve).list(&ListParams::default()).await;
    let error = refused.err().context("eve may not list Checkpoints")?.to_string();
    ensure!(error.contains("eve") && error.contains("cannot list"), "{error}");
    Ok(())
}

#[tokio::test]
async fn api_a_kubeconfig_is_as_good_as_a_client() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let server = ApiServer::shared().await?;
    let namespace = server.namespace("kubeconfig").await?;
    let file = Kubeconfig::read_from(server.kubeconfig(&User::admin()).await?)?;
    let client =
        Client::try_from(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)?;
    ensure!(Api::<ConfigMap>::namespaced(client, &namespace).list(&ListParams::default()).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn api_a_server_is_gone_when_it_is_dropped() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let server = ApiServer::start().await?;
    let Some(dir) = server.directory().map(Path::to_path_buf) else { return Ok(()) };
    ensure!(processes(&dir) > 2, "{}", dir.display());
    drop(server);
    ensure!(processes(&dir) == 0 && !dir.exists(), "{} is left", dir.display());
    Ok(())
}

/// Started by the test below, in a process of its own.
const VICTIM: &str = "WOODFROG_TESTAPI_VICTIM";

#[tokio::test]
async fn api_a_server_is_gone_when_its_test_is_killed() -> Result<()> {
    if env::var_os(VICTIM).is_some() {
        let server = ApiServer::start().await?;
        println!("victim {}", server.directory().map(Path::display).context("no directory")?);
        tokio::time::sleep(Duration::from_secs(600)).await;
        return Ok(());
    }
    if !Need::met() || ApiServer::shared().await?.directory().is_none() {
        return Ok(());
    }
    let mut victim = Command::new(env::current_exe()?)
        .args(["--exact", "api_a_server_is_gone_when_its_test_is_killed", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(victim.stdout.take().context("no output")?).lines();
    let mut found =
        lines.map_while(Result::ok).filter_map(|line| Some(PathBuf::from(line.split_once("victim ")?.1)));
    let dir = found.next();
    victim.kill()?;
    victim.wait()?;
    let dir = dir.context("the victim started no server")?;

    let start = Instant::now();
    while dir.exists() || processes(&dir) > 0 {
        ensure!(start.elapsed() < Duration::from_secs(10), "{} is left", dir.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// How many processes name a directory in their arguments.
fn processes(dir: &Path) -> usize {
    let dir = dir.to_string_lossy();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|arguments| String::from_utf8_lossy(arguments).contains(&*dir))
        .count()
}
