//! Where Debian's packages come from: wherever this machine gets its own.

use std::process::Command;

/// The mirror of Debian's main archive in this machine's apt configuration, or nothing: then debootstrap's default is
/// meant. apt has a default of its own for neither, so [`DEFAULT`] stands for debootstrap's.
pub(crate) fn configured() -> Option<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .ok()?;
    choose(&String::from_utf8_lossy(&output.stdout))
}

/// Debootstrap's default (`DEF_MIRROR` in its script).
pub(crate) const DEFAULT: &str = "http://deb.debian.org/debian";

/// The archive itself is always called `debian`; security updates and third parties are called something else.
fn choose(uris: &str) -> Option<String> {
    let mut uris = uris.lines().map(|uri| uri.trim().trim_end_matches('/'));
    uris.find(|uri| uri.ends_with("/debian") && uri.starts_with("http")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn the_main_archive_is_chosen_over_security_updates_and_third_parties() {
        let uris = "https://deb.example.com/node_20.x/\nhttp://mirror.example.com/debian-security/\n\
                    http://mirror.example.com/debian/\nhttp://other.example.com/debian/\n";
        assert_eq!(choose(uris).as_deref(), Some("http://mirror.example.com/debian"));
        assert_eq!(choose("https://deb.example.com/node_20.x/\n"), None);
        assert_eq!(choose(""), None);
    }
}
