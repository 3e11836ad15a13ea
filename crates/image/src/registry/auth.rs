//! Tokens (the distribution specification leaves them to Docker's "token authentication"). `oci-client` fetches one
//! for one repository; mounting a blob of another needs one for both, and an identity token must be posted.

use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::{RegistryToken, RegistryTokenType};
use oci_client::{Reference, RegistryOperation};
use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::error::Cause;
use super::{Registry, RegistryError};
use crate::credentials::Login;

/// What we want to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The repository.
    pub(super) image: &'a Reference,
    pub(super) access: Access,
    /// A repository of the same registry, to read.
    pub(super) also_read: Option<&'a Reference>,
}

/// What we want to do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// Some registries know this as an action of its own, others take it for writing.
    Delete,
}

impl Scope<'_> {
    fn texts(&self) -> Vec<String> {
        let actions = match self.access {
            Access::Read => "pull",
            Access::Write => "pull,push",
            Access::Delete => "pull,push,delete",
        };
        let mut scopes = vec![format!("repository:{}:{actions}", self.image.repository())];
        scopes.extend(self.also_read.map(|other| format!("repository:{}:pull", other.repository())));
        scopes
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Where tokens are given out.
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Registry {
    /// Gets a token, if the registry wants one, and leaves it with the client for the requests that follow.
    pub(super) async fn authorize(&self, scope: &Scope<'_>) -> Result<(), RegistryError> {
        let image = scope.image;
        let login = self.options.credentials.for_repository(image);
        let known = match login {
            Some(Login::Password { user, password }) => RegistryAuth::Basic(user.clone(), password.clone()),
            _ => RegistryAuth::Anonymous,
        };
        self.client.store_auth_if_needed(image.resolve_registry(), &known).await;
        let Some(token) = self.log_in(scope).await? else { return Ok(()) };
        if scope.access != Access::Read {
            self.client.tokens.insert(image, RegistryOperation::Push, token.clone()).await;
        }
        self.client.tokens.insert(image, RegistryOperation::Pull, token).await;
        Ok(())
    }

    /// What a request has to show; `None`: nothing.
    pub(super) async fn log_in(&self, scope: &Scope<'_>) -> Result<Option<RegistryTokenType>, RegistryError> {
        let image = scope.image;
        let login = self.options.credentials.for_repository(image);
        match (self.request(image, "log in for", self.challenge(image)).await?, login) {
            (Some(challenge), login) => {
                let token = self.request(image, "log in for", self.token(&challenge, scope, login)).await?;
                Ok(Some(RegistryTokenType::Bearer(RegistryToken::Token { token })))
            }
            // The client keeps one login a registry; logins may differ by repository.
            (None, Some(Login::Password { user, password })) => {
                Ok(Some(RegistryTokenType::Basic(user.clone(), password.clone())))
            }
            (None, _) => Ok(None),
        }
    }

    /// Asks what the registry wants. `None`: nothing, or a password with each request, which the client sends.
    async fn challenge(&self, image: &Reference) -> Result<Option<Challenge>, Cause> {
        let answer = self.http.get(self.url(image)).send().await?;
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        Ok(headers.iter().filter_map(|value| value.to_str().ok()).find_map(bearer))
    }

    /// Where a registry's API begins.
    pub(super) fn url(&self, image: &Reference) -> String {
        let registry = image.resolve_registry();
        let plain = self.options.plain_http.iter().any(|host| host == registry);
        format!("{}://{registry}/v2/", if plain { "http" } else { "https" })
    }

    async fn token(
        &self,
        challenge: &Challenge,
        scope: &Scope<'_>,
        login: Option<&Login>,
    ) -> Result<String, Cause> {
        let request = match login {
            Some(Login::Identity { token }) => {
                let mut form = vec![
                    ("grant_type", "refresh_token".to_owned()),
                    ("client_id", "woodfrog".to_owned()),
                    ("refresh_token", token.clone()),
                    ("scope", scope.texts().join(" ")),
                ];
                form.extend(challenge.service.clone().map(|service| ("service", service)));
                // A form's body is a URL's query.
                let mut url = reqwest::Url::parse("form:").expect("a constant");
                let body = url.query_pairs_mut().extend_pairs(form).finish().query().unwrap_or_default();
                self.http
                    .post(&challenge.realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body.to_owned())
            }
            _ => {
                let scopes = scope.texts().into_iter().map(|text| ("scope", text));
                let service = challenge.service.clone().map(|service| ("service", service));
                let query: Vec<_> = service.into_iter().chain(scopes).collect();
                let request = self.http.get(&challenge.realm).query(&query);
                match login {
                    Some(Login::Password { user, password }) => request.basic_auth(user, Some(password)),
                    _ => request,
                }
            }
        };
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        if !status.is_success() {
            return Err(Cause::Status(status.as_u16(), String::from_utf8_lossy(&body).into_owned()));
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| Cause::Status(status.as_u16(), format!("its token cannot be read: {e}")))?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| Cause::Status(status.as_u16(), "it sent no token".to_owned()))
    }
}

fn bearer(header: &str) -> Option<Challenge> {
    let parameter = |challenge: &ChallengeRef<'_>, wanted: &str| {
        let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.to_unescaped())
    };
    ChallengeParser::new(header)
        .flatten()
        .find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))
        .and_then(|challenge| {
            Some(Challenge {
                realm: parameter(&challenge, "realm")?,
                service: parameter(&challenge, "service"),
            })
        })
}
