//! The applications that tests freeze and thaw, each an image built from Debian's packages and the files in `apps/NAME`.
//!
//! All listen on port 8080 of every address and answer `GET /` (a page), `GET /count` (adds one to a number kept in memory and
//! returns it) and `GET /checksum` (a checksum over what they hold in memory). They run as root or as uid 1000, with a
//! read-only root file system and a writable `/tmp`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error, cache, image,
    image::{Blob, Image},
    layer::Layer,
    need::check,
    process, registry,
};

/// An application whose image nodes can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum App {
    /// CPython 3.14, about 190 MB resident. Argument: how many MB of objects (195).
    Cpython,
    /// OpenJDK 25 with Tomcat 11 and its examples (at `/examples/`), about 450 MB resident.
    Tomcat,
    /// Node.js 24 with Express, about 300 MB resident.
    Node,
    /// Ruby on Rails 7.2 on Puma 8 with two workers.
    Rails,
    /// A server in C. Arguments: MB of memory (32) and number of threads (4).
    Synthetic,
    /// Any program in Go, compiled when it starts. Argument: its text.
    Go,
}

impl App {
    /// All of them but [`App::Go`], whose compiler is large and which only a test that is long anyway needs.
    pub const ALL: [Self; 5] = [Self::Cpython, Self::Tomcat, Self::Node, Self::Rails, Self::Synthetic];

    /// The repository of its image.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpython => "cpython",
            Self::Tomcat => "tomcat",
            Self::Node => "node",
            Self::Rails => "rails",
            Self::Synthetic => "synthetic",
            Self::Go => "go",
        }
    }

    /// The application of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|app| app.name() == name)
    }

    /// The reference of its image, the same on every node.
    #[must_use]
    pub fn reference(self) -> String {
        format!("{}/{}:1", registry::ADDRESS, self.name())
    }

    /// What its image starts, as in the image's config.
    #[must_use]
    pub const fn entrypoint(self) -> &'static [&'static str] {
        match self {
            Self::Cpython => &["/usr/bin/python3.14", "/srv/app/server.py"],
            Self::Tomcat | Self::Rails | Self::Go => &["/bin/sh", "/srv/app/start.sh"],
            Self::Node => &["/usr/bin/node", "/srv/app/server.js"],
            Self::Synthetic => &["/srv/app/server"],
        }
    }

    const fn packages(self) -> &'static str {
        match self {
            // The allocators are for tests that preload them.
            Self::Cpython => "python3.14 libjemalloc2 libmimalloc3",
            Self::Tomcat => "openjdk-25-jre-headless tomcat11-common tomcat11-examples",
            Self::Node => "nodejs node-express",
            Self::Rails => "ruby-rails puma",
            Self::Synthetic => "",
            Self::Go => "golang-go",
        }
    }

    fn sources(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("apps").join(self.name())
    }

    /// Builds what the cache lacks.
    pub(crate) fn build(self) -> Result<Image, Error> {
        let name = self.name();
        let debian = Layer::debian()?;
        let mut blobs = vec![image::blob(&debian, "Debian")?];
        let top = if self.packages().is_empty() {
            debian
        } else {
            let packages = debian.with(&format!("{name}'s packages"), self.packages(), None)?;
            blobs.push(image::blob(&packages, &format!("{name}'s packages"))?);
            packages
        };
        blobs.push(self.files(&top)?);
        Ok(Image::new(blobs, self.entrypoint(), "/srv/app"))
    }

    /// Stores its image, built if need be, in the registry whose content is at `storage`.
    pub(crate) fn publish(self, storage: &Path) -> Result<(), Error> {
        registry::store(storage, self.name(), "1", &self.build()?)
    }

    fn files(self, top: &Layer) -> Result<Blob, Error> {
        let what = format!("{}'s files", self.name());
        let sources = self.sources();
        if self != Self::Synthetic {
            return image::blob(&top.with(&what, "", Some(&sources))?, &what);
        }
        // The one that must be compiled: statically, so that neither a compiler nor this machine's libc gets into the image.
        let source = sources.join("server.c");
        let text = std::fs::read(&source).map_err(|error| Error::File {
            action: "read",
            path: source.clone(),
            source: error,
        })?;
        let built = cache::layer(&cache::key(&[b"gcc -O2 -static", &text]), |dir| {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-Wall", "-Werror", "-static", "-pthread", "-o"])
                .arg(dir.join("server"))
                .arg(&source);
            process::run("compile the synthetic server", &mut gcc).map(drop)
        })?;
        image::blob(&top.with(&what, "", Some(&built))?, &what)
    }
}

/// Builds all that nodes are made of and run, as far as the cache lacks it: several minutes on a new machine, mostly downloads.
///
/// # Errors
/// A package cannot be had, or a program fails.
pub fn fill_cache() -> Result<(), Error> {
    check()?;
    image::pause_blob(&Layer::node()?)?;
    App::ALL.into_iter().try_for_each(|app| app.build().map(drop))
}

/// Stores the image that containerd needs for every pod.
pub(crate) fn publish_pause(node: &Layer, storage: &Path) -> Result<(), Error> {
    registry::store(
        storage,
        "pause",
        "1",
        &Image::new(vec![image::pause_blob(node)?], &["/pause", "-P"], "/"),
    )
}
