//! `woodfrog-bench after`: requests to applications that were thawed a while ago, beside those to processes that were never frozen.

pub(crate) mod args;
mod results;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::Container;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testnode::Node;

use self::args::AfterArgs;
use self::results::{Round, Served};
use crate::args::Mode;
use crate::client::{self, FirstAnswer};
use crate::clock::{median, ms, now_us, percentile};
use crate::contenders::woodfrog::{Woodfrog, with_all_memory};
use crate::contenders::{Contender as _, PATIENCE, Place};
use crate::progress::Bar;
use crate::samples::{self, Samples};
use crate::workload::Workload;

/// How many requests each process has answered before it is measured.
const BEFORE: u32 = 1000;
/// Clients at once, where throughput is measured.
const CLIENTS: u32 = 4;

/// Measures all and prints the table.
pub(crate) async fn run(place: Place, args: &AfterArgs) -> Result<ExitCode> {
    let measure = async |workload: &Workload, bar: &Bar| measure(&place, workload, args, bar).await;
    let all = samples::each(&args.workloads(), args.runs, measure).await?;
    println!("{}", results::table(&all));
    println!(
        "Medians of {} rounds, each with {} requests from one client and as many from {CLIENTS}.",
        args.runs, args.requests
    );
    args.node.write(&all.iter().flat_map(results::json).collect())?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(place: &Place, workload: &Workload, args: &AfterArgs, bar: &Bar) -> Result<Samples<Round>> {
    let copied = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Copied).await?;
    let shared = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Shared).await?;
    let processes = [
        never_frozen(place, workload, "never").await?,
        never_frozen(place, workload, "again").await?,
        thawed(place, &copied, "copied").await?,
        thawed(place, &shared, "shared").await?,
    ];
    let address = |container: &Container| SocketAddr::new(container.ip(), PORT);
    for container in &processes {
        ask(&place.node, address(container), BEFORE, 1)?;
    }
    let mut samples = Samples::new(workload.name());
    for number in 0..args.runs as usize {
        let mut served = [Served::default(); 4];
        // None is always the one that comes after another certain one.
        for turn in 0..processes.len() {
            let index = if number % 2 == 0 { (turn + number) % 4 } else { (7 - turn + number) % 4 };
            served[index] = serve(&place.node, address(&processes[index]), args.requests)
                .with_context(|| processes[index].pod_name().to_owned())?;
        }
        let [never, again, copied, shared] = served;
        let round = Round { never, again, copied, shared };
        bar.done(&round.to_string());
        samples.add(round);
    }
    for container in &processes {
        container.remove().await?;
    }
    copied.clean().await?;
    shared.clean().await?;
    Ok(samples)
}

async fn never_frozen(place: &Place, workload: &Workload, way: &str) -> Result<Container> {
    let container = place.direct.run(place.pod(workload, way)).await?;
    FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
    // As those that were frozen were warmed up.
    workload.warm_up(&place.node, container.ip())?;
    Ok(container)
}

async fn thawed(place: &Place, ours: &Woodfrog, way: &str) -> Result<Container> {
    let container = place.shim.run(ours.pod(way)).await?;
    FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
    let (managed, _) = with_all_memory(place, &container.id).await?;
    ensure!(managed.shares_memory == (way == Mode::Shared.name()), "it does not have {way} memory");
    ours.state.check(&place.node, container.ip())?;
    Ok(container)
}

fn serve(node: &Node, address: SocketAddr, requests: u32) -> Result<Served> {
    let answers = ask(node, address, requests, 1)?;
    let began = now_us();
    let crowd = ask(node, address, requests, CLIENTS)?.len();
    let seconds = ms(began, now_us()) / 1e3;
    Ok(Served {
        p50_ms: median(&answers).unwrap_or(f64::NAN),
        p99_ms: percentile(&answers, 99).unwrap_or(f64::NAN),
        per_second: crowd as f64 / seconds,
    })
}

/// Sends requests from so many clients at once, each of which waits for one answer before it asks again: milliseconds of each.
fn ask(node: &Node, address: SocketAddr, requests: u32, clients: u32) -> Result<Vec<f64>> {
    let each = vec![requests / clients; clients as usize];
    let one = |requests: &u32| (0..*requests).map(|_| client::answer(address)).collect::<Result<Vec<_>>>();
    let answers = client::together(node, &each, one)?.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(answers.concat())
}
