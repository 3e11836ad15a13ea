//! The certificate with which probes over HTTPS are answered. kubelet verifies none.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// The first byte of a TLS connection: a handshake record (RFC 8446, section 5.1). No HTTP request begins with it.
pub(super) const HANDSHAKE: u8 = 0x16;

/// The name in the certificate.
const NAME: &str = "asleep.woodfrog.dev";

/// A key and a certificate of its own, made when they are first needed.
#[derive(Default)]
pub(super) struct Identity(OnceLock<Option<TlsAcceptor>>);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// None: they cannot be made; the reason has been logged.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let made = || make().inspect_err(|e| tracing::warn!("no probe over HTTPS is answered: {e}")).ok();
        self.0.get_or_init(made).clone()
    }
}

fn make() -> Result<TlsAcceptor, Box<dyn std::error::Error>> {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
