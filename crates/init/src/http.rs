//! The little of HTTP/1.1 that the application's API needs: one request a connection, no bodies.

/// Most bytes of a request's head.
pub(crate) const MAX_HEAD: usize = 4096;

/// A request of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `POST /checkpoint`: the application is warm.
    Checkpoint,
    /// `GET /generation`: who am I now?
    Generation,
}

/// An error response: the rest of the status line, and a header line or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(&'static str, &'static str);

const BAD: Refusal = Refusal("400 Bad Request", "");
const TOO_LARGE: Refusal = Refusal("431 Request Header Fields Too Large", "");
const UNKNOWN: Refusal = Refusal("404 Not Found", "");

/// The request in `head`; none: not all of it has come.
pub(crate) fn parse(head: &[u8]) -> Option<Result<Request, Refusal>> {
    let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
        return (head.len() >= MAX_HEAD).then_some(Err(TOO_LARGE));
    };
    Some(request(&head[..end]))
}

fn request(head: &[u8]) -> Result<Request, Refusal> {
    let head = std::str::from_utf8(head).map_err(|_| BAD)?;
    let mut lines = head.split("\r\n");
    let mut line = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (line.next(), line.next(), line.next(), line.next())
    else {
        return Err(BAD);
    };
    let is_token = !method.is_empty() && method.bytes().all(|b| b.is_ascii_alphabetic());
    if !is_token || !target.starts_with('/') || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(BAD);
    }
    if lines.any(|field| !field.contains(':')) {
        return Err(BAD);
    }
    match (target.split('?').next().unwrap_or_default(), method) {
        ("/checkpoint", "POST") => Ok(Request::Checkpoint),
        ("/generation", "GET") => Ok(Request::Generation),
        ("/checkpoint", _) => Err(Refusal("405 Method Not Allowed", "Allow: POST\r\n")),
        ("/generation", _) => Err(Refusal("405 Method Not Allowed", "Allow: GET\r\n")),
        _ => Err(UNKNOWN),
    }
}

/// The bytes of a response, after which the connection is closed.
pub(crate) fn response(status: &str, field: &str, body: &str) -> String {
    let kind = if body.starts_with('{') { "Content-Type: application/json\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status}\r\n{field}{kind}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

impl Refusal {
    /// The bytes of the response.
    pub(crate) fn response(self) -> String {
        response(self.0, self.1, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> &'static str {
        parse(head.as_bytes()).unwrap().unwrap_err().0
    }

    #[test]
    fn what_curl_sends_is_understood_once_all_of_it_has_come() {
        let head =
            b"POST /checkpoint HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(parse(&head[..end]), None);
        }
        assert_eq!(parse(head), Some(Ok(Request::Checkpoint)));
        assert_eq!(parse(b"GET /generation?x HTTP/1.0\r\n\r\n"), Some(Ok(Request::Generation)));
    }

    #[test]
    fn what_is_not_ours_is_refused_with_the_right_status() {
        assert!(status("GET / HTTP/1.1\r\n\r\n").starts_with("404"));
        assert!(status("GET /checkpoint HTTP/1.1\r\n\r\n").starts_with("405"));
        assert!(status("POST /generation HTTP/1.1\r\n\r\n").starts_with("405"));
        for bad in ["\r\n\r\n", "GET /generation\r\n\r\n", "GET /generation HTTP/2\r\n\r\n", "WFRG\r\n\r\n"] {
            assert!(status(bad).starts_with("400"), "{bad:?}");
        }
        assert!(status(&"x".repeat(MAX_HEAD)).starts_with("431"));
    }
}
