//! Who we are to a registry, from a Docker config (`~/.docker/config.json`, or a pull secret's `.dockerconfigjson`).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::Reference;
use serde::Deserialize;

/// Why a Docker config could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// No JSON of that shape.
    #[error("the Docker config cannot be read")]
    Json(#[from] serde_json::Error),
    /// A field that should be `base64(USER:PASSWORD)`.
    #[error("the Docker config's auth for {registry} is not the base64 of USER:PASSWORD")]
    Auth {
        /// Its key in `auths`.
        registry: String,
    },
}

/// One way to prove who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password or access token.
        password: String,
    },
    /// An OAuth2 refresh token, as `docker login` keeps it for some clouds (`identitytoken`).
    Identity {
        /// The token.
        token: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::Identity { .. } => "Identity(…)",
        })
    }
}

/// Logins by registry, or by registry and the beginning of a repository's path.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    logins: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase", default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Credentials {
    /// Reads a Docker config. Credential helpers are not run: the agent is root and they are programs.
    pub fn from_docker_config(json: &[u8]) -> Result<Self, CredentialsError> {
        let config: Config = serde_json::from_slice(json)?;
        let mut logins = BTreeMap::new();
        for (key, auth) in config.auths {
            if let Some(login) = login(&key, auth)? {
                logins.insert(normalize(&key), login);
            }
        }
        Ok(Self { logins })
    }

    /// Adds a login for a registry (`HOST[:PORT]`), or for repositories there (`HOST[:PORT]/PATH`).
    pub fn with(mut self, registry: &str, login: Login) -> Self {
        self.logins.insert(normalize(registry), login);
        self
    }

    /// The login with the longest key that matches.
    pub fn for_repository(&self, image: &Reference) -> Option<&Login> {
        let registry = normalize(image.resolve_registry());
        let full = format!("{registry}/{}", image.repository());
        let matches =
            |key: &str| full.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.logins
            .iter()
            .filter(|(key, _)| matches(key))
            .max_by_key(|(key, _)| key.len())
            .map(|(_, login)| login)
    }
}

fn login(registry: &str, auth: Auth) -> Result<Option<Login>, CredentialsError> {
    if let Some(token) = auth.identitytoken.filter(|token| !token.is_empty()) {
        return Ok(Some(Login::Identity { token }));
    }
    if let (Some(user), Some(password)) = (auth.username, auth.password) {
        return Ok(Some(Login::Password { user, password }));
    }
    let Some(encoded) = auth.auth.filter(|auth| !auth.is_empty()) else {
        return Ok(None);
    };
    let malformed = || CredentialsError::Auth { registry: registry.to_owned() };
    let decoded = STANDARD.decode(encoded.trim()).map_err(|_| malformed())?;
    let text = String::from_utf8(decoded).map_err(|_| malformed())?;
    let (user, password) = text.split_once(':').ok_or_else(malformed)?;
    Ok(Some(Login::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() }))
}

/// Keys come as hosts, as URLs and, for Docker Hub, under several names.
fn normalize(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "docker.io" | "registry-1.docker.io" => "index.docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str) -> Login {
        Login::Password { user: user.into(), password: "geheim".into() }
    }

    fn found<'c>(credentials: &'c Credentials, image: &str) -> Option<&'c Login> {
        credentials.for_repository(&image.parse().unwrap())
    }

    #[test]
    fn a_docker_config_is_understood_in_all_its_forms() {
        let json = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmdlaGVpbQ=="},
            "registry.example:5000": {"username": "plain", "password": "geheim"},
            "cloud.example": {"auth": "MDAwOg==", "identitytoken": "token"},
            "helper.example": {}
        }, "credsStore": "desktop"}"#;
        let credentials = Credentials::from_docker_config(json).unwrap();
        assert_eq!(found(&credentials, "busybox"), Some(&password("hub")));
        assert_eq!(found(&credentials, "registry.example:5000/a/b:1"), Some(&password("plain")));
        assert_eq!(found(&credentials, "cloud.example/a"), Some(&Login::Identity { token: "token".into() }));
        assert_eq!(found(&credentials, "helper.example/a"), None);
    }

    #[test]
    fn the_longest_matching_path_wins() {
        let credentials = Credentials::default()
            .with("r.example", password("all"))
            .with("r.example/team", password("team"));
        assert_eq!(found(&credentials, "r.example/team/app"), Some(&password("team")));
        assert_eq!(found(&credentials, "r.example/teamwork/app"), Some(&password("all")));
        assert_eq!(found(&credentials, "other.example/team/app"), None);
    }

    #[test]
    fn a_broken_auth_names_its_registry() {
        let error =
            Credentials::from_docker_config(br#"{"auths": {"r.example": {"auth": "%"}}}"#).unwrap_err();
        assert!(error.to_string().contains("r.example"), "{error}");
    }

    #[test]
    fn a_login_never_prints_its_secret() {
        let printed = format!("{:?}", Credentials::default().with("r.example", password("x")));
        assert!(!printed.contains("geheim"), "{printed}");
    }
}
