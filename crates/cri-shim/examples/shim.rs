//! The shim by itself: `shim LISTEN RUNTIME`.

use woodfrog_cri_shim::{Config, run};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let (Some(listen), Some(runtime)) = (args.next(), args.next()) else {
        return Err("usage: shim LISTEN RUNTIME".into());
    };
    run(Config::new(listen, runtime), async { _ = tokio::signal::ctrl_c().await }).await?;
    Ok(())
}
