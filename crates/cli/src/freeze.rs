//! `woodfrog freeze`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use woodfrog_protocol::agent::{
    self, FreezeRequest, FreezeTarget, Frozen, Hook, HttpRequest, Rehearsal, request, response,
};

use crate::args::{Format, Freeze, Registry};
use crate::client;
use crate::failure::Failure;
use crate::output;
use crate::progress::Bars;

/// Freezes containers into images.
pub(crate) fn run(socket: &Path, format: Format, freeze: Freeze) -> Result<ExitCode, Failure> {
    let request = request::Kind::Freeze(request(freeze)?);
    let mut bars = Bars::new();
    let answer = client::ask_and_watch(socket, request, &mut |step| bars.show(step));
    bars.clear();
    let response::Kind::Frozen(frozen) = answer? else {
        return client::unexpected(socket);
    };
    for image in &frozen.images {
        for warning in &image.warnings {
            eprintln!("woodfrog: warning: {}: {warning}", image.container);
        }
    }
    match format {
        Format::Json => output::json(&frozen)?,
        Format::Table => table(&frozen)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(frozen: &Frozen) -> Result<(), Failure> {
    let header = ["CONTAINER", "STOOD STILL", "MEMORY", "ADDED", "COMPRESSED", "IMAGE", "DIGEST"];
    let rows = frozen.images.iter().map(|image| {
        vec![
            image.container.clone(),
            output::millis(image.standstill_ms),
            output::bytes(image.memory_bytes),
            output::bytes(image.layer_bytes),
            output::bytes(image.compressed_bytes),
            image.image.clone(),
            image.digest.clone(),
        ]
    });
    output::table(&header, &[1, 2, 3, 4], rows.collect())?;
    Ok(output::line(&format!("frozen and pushed in {}", output::millis(frozen.total_ms)))?)
}

fn request(freeze: Freeze) -> Result<FreezeRequest, Failure> {
    let docker_config = match docker_config(&freeze.registry) {
        Some(path) => std::fs::read_to_string(&path).map_err(|source| Failure::File { path, source })?,
        None => String::new(),
    };
    Ok(FreezeRequest {
        targets: targets(freeze.containers, freeze.image)?,
        connections: agent::Connections::from(freeze.connections).into(),
        memory: agent::Memory::from(freeze.memory).into(),
        stop: freeze.stop,
        plain_http: freeze.registry.plain_http,
        docker_config,
        before_checkpoint: freeze
            .before_checkpoint
            .iter()
            .map(|text| hook(text))
            .collect::<Result<_, _>>()?,
        after_restore: freeze.after_restore.iter().map(|text| hook(text)).collect::<Result<_, _>>()?,
        rehearsal: rehearsal(freeze.record_working_set, &freeze.request)?,
    })
}

fn rehearsal(wanted: bool, requests: &[String]) -> Result<Option<Rehearsal>, Failure> {
    let get = |url: &String| {
        let Hook { http_path: path, http_port: port, .. } = hook(url)?;
        let why = || Failure::Usage(format!("request {url:?}: write it as in http://:8080/path"));
        if path.is_empty() { Err(why()) } else { Ok(HttpRequest { port, path, ..HttpRequest::default() }) }
    };
    let requests = requests.iter().map(get).collect::<Result<_, _>>()?;
    Ok(wanted.then_some(Rehearsal { requests }))
}

/// Where the registries' credentials are: named, or where docker keeps them.
pub(crate) fn docker_config(registry: &Registry) -> Option<PathBuf> {
    let usual = || {
        let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let dir = dir.or_else(|| std::env::home_dir().map(|home| home.join(".docker")))?;
        Some(dir.join("config.json")).filter(|path| path.exists())
    };
    registry.docker_config.clone().or_else(usual)
}

/// `CONTAINER=REF` is complete; each other container takes the next `--image`.
fn targets(containers: Vec<String>, images: Vec<String>) -> Result<Vec<FreezeTarget>, Failure> {
    let mut images = images.into_iter();
    let targets = containers
        .into_iter()
        .map(|container| match container.split_once('=') {
            Some((container, image)) => Ok(FreezeTarget { container: container.into(), image: image.into() }),
            None => {
                let missing =
                    || format!("no image for {container}: add --image REF, or write {container}=REF");
                let image = images.next().ok_or_else(|| Failure::Usage(missing()))?;
                Ok(FreezeTarget { container, image })
            }
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    if let Some(image) = images.next() {
        return Err(Failure::Usage(format!("no container for --image {image}")));
    }
    if let Some(target) = targets.iter().find(|target| target.container.is_empty() || target.image.is_empty())
    {
        return Err(Failure::Usage(format!("{:?}={:?}: both are needed", target.container, target.image)));
    }
    Ok(targets)
}

/// A command in words as a shell would split them, or `http://[HOST]:PORT/PATH`.
fn hook(text: &str) -> Result<Hook, Failure> {
    let wrong = |why: &str| Failure::Usage(format!("hook {text:?}: {why}"));
    if text.starts_with("https://") {
        return Err(wrong("only http:// is spoken inside a container"));
    }
    let Some(address) = text.strip_prefix("http://") else {
        let exec = shlex::split(text).ok_or_else(|| wrong("a quote is not closed"))?;
        return if exec.is_empty() { Err(wrong("no command")) } else { Ok(Hook { exec, ..Hook::default() }) };
    };
    let (authority, path) = address.split_once('/').unwrap_or((address, ""));
    let (host, port) =
        authority.rsplit_once(':').ok_or_else(|| wrong("a port is needed, as in http://:8080/path"))?;
    if !matches!(host, "" | "localhost" | "127.0.0.1") {
        return Err(wrong("it is sent inside the container's network, so write http://:PORT/PATH"));
    }
    let http_port = port.parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(|| wrong("not a port"))?;
    Ok(Hook { http_path: format!("/{path}"), http_port: http_port.into(), ..Hook::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(containers: &[&str], images: &[&str]) -> Result<Vec<(String, String)>, String> {
        let owned = |list: &[&str]| list.iter().map(|&item| item.to_owned()).collect();
        let targets = targets(owned(containers), owned(images)).map_err(|e| e.to_string())?;
        Ok(targets.into_iter().map(|target| (target.container, target.image)).collect())
    }

    #[test]
    fn each_container_has_its_image_in_either_notation() {
        let expected =
            Ok(vec![("a".into(), "r/a".into()), ("b".into(), "r/b".into()), ("c".into(), "r/c".into())]);
        assert_eq!(pairs(&["a", "b=r/b", "c"], &["r/a", "r/c"]), expected);
    }

    #[test]
    fn a_container_without_image_and_an_image_without_container_are_named() {
        assert!(pairs(&["a", "b"], &["r/a"]).unwrap_err().contains("no image for b"));
        assert!(pairs(&["a"], &["r/a", "r/b"]).unwrap_err().contains("--image r/b"));
        assert!(pairs(&["a="], &[]).is_err());
    }

    #[test]
    fn a_rehearsal_asks_by_get_requests_alone() {
        let request = &rehearsal(true, &["http://:80/a".into()]).unwrap().unwrap().requests[0];
        assert_eq!((request.port, request.path.as_str()), (80, "/a"));
        assert!(rehearsal(true, &["curl localhost".into()]).is_err());
        assert_eq!(rehearsal(false, &[]).unwrap(), None);
    }

    #[test]
    fn hooks_are_commands_in_words_or_requests_to_the_container_itself() {
        assert_eq!(hook("sh -c 'a b'").unwrap().exec, ["sh", "-c", "a b"]);
        let request = hook("http://:8080/a/b?c").unwrap();
        assert_eq!((request.http_path.as_str(), request.http_port), ("/a/b?c", 8080));
        assert_eq!(hook("http://localhost:1").unwrap().http_path, "/");
        for bad in ["", "sh 'a", "http://example.org:80/", "http:///x", "http://:0/", "https://:1/"] {
            assert!(hook(bad).is_err(), "{bad}");
        }
    }
}
