//! Writes what is generated from the API types: `cargo xtask generate`.
#![forbid(unsafe_code)]

mod files;
mod reference;

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, contents) in files::all() {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&root))?;
        fs::write(path, contents)?;
    }
    Ok(())
}
