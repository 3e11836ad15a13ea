//! One request to the agent, and its answers.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use woodfrog_protocol::agent::{Progress, Request, Response, request, response};
use woodfrog_protocol::frame::{self, Decoder};

use crate::failure::Failure;

/// For an answer that needs no work.
const QUICKLY: Duration = Duration::from_secs(30);

/// Asks what is answered without much work.
pub(crate) fn ask(socket: &Path, kind: request::Kind) -> Result<response::Kind, Failure> {
    exchange(socket, kind, Some(QUICKLY), &mut |_| {})
}

/// Asks what takes as long as it takes; `progress` is told how far it is.
pub(crate) fn ask_and_watch(
    socket: &Path,
    kind: request::Kind,
    progress: &mut dyn FnMut(Progress),
) -> Result<response::Kind, Failure> {
    exchange(socket, kind, None, progress)
}

/// What to say of an answer that does not fit the question.
pub(crate) fn unexpected<T>(socket: &Path) -> Result<T, Failure> {
    Err(Failure::Answer { path: socket.to_owned() })
}

fn exchange(
    socket: &Path,
    kind: request::Kind,
    timeout: Option<Duration>,
    progress: &mut dyn FnMut(Progress),
) -> Result<response::Kind, Failure> {
    let path = socket.to_owned();
    let mut stream = UnixStream::connect(socket).map_err(|source| {
        let path = path.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Failure::Forbidden { path, source },
            _ => Failure::Unreachable { path, source },
        }
    })?;
    let broken = |source| Failure::Broken { path: path.clone(), source };
    let foreign = |source| Failure::Frame { path: path.clone(), source };
    stream.set_read_timeout(timeout).map_err(broken)?;
    let request = frame::encode(&Request { kind: Some(kind) }).map_err(foreign)?;
    stream.write_all(&request).map_err(broken)?;

    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        while let Some(Response { kind }) = decoder.pop().map_err(foreign)? {
            match kind {
                Some(response::Kind::Progress(step)) => progress(step),
                Some(response::Kind::Error(error)) => return Err(Failure::Agent(error)),
                Some(answer) => return Ok(answer),
                None => return Err(Failure::Answer { path }),
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(broken(io::Error::other("the agent hung up"))),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(broken(io::Error::other(format!("no answer within {QUICKLY:?}"))));
            }
            Err(e) => return Err(broken(e)),
        }
    }
}
