//! Probes as clients send them, to a responder on loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// A responder that listens on an address of loopback, without the right to stand in for others.
fn responder(address: IpAddr) -> (Responder, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (Responder::serve(vec![listener], &Arc::default()).unwrap(), address)
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// `GET /healthz`; the answer's body.
async fn get<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, http_2: bool) -> String {
    let request = http::Request::get("https://pod/healthz").body(Empty::<bytes::Bytes>::new()).unwrap();
    let io = TokioIo::new(stream);
    let response = if http_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    assert_eq!(response.status(), 200);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Believes every certificate, as kubelet does for probes.
#[derive(Debug)]
struct Believes;

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn http_is_answered_over_both_families() {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let (_responder, address) = responder(address);
        for http_2 in [false, true] {
            assert_eq!(get(connect(address).await, http_2).await, "asleep, and ready\n");
        }
    }
}

#[tokio::test]
async fn https_is_answered_with_every_version_of_tls_and_http() {
    let (_responder, address) = responder(Ipv4Addr::LOCALHOST.into());
    for version in rustls::ALL_VERSIONS {
        for (http_2, protocol) in [(false, &b"http/1.1"[..]), (true, b"h2")] {
            let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Believes))
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            let name = ServerName::from(address.ip());
            let stream = TlsConnector::from(Arc::new(config)).connect(name, connect(address).await).await;
            let stream = stream.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
            assert_eq!(get(stream, http_2).await, "asleep, and ready\n");
        }
    }
}

#[tokio::test]
async fn grpc_s_health_check_says_serving() {
    let (_responder, address) = responder(Ipv6Addr::LOCALHOST.into());
    let channel = tonic::transport::Endpoint::new(format!("http://{address}")).unwrap().connect().await;
    let mut client = HealthClient::new(channel.unwrap());
    let answer = client.check(HealthCheckRequest { service: "any".into() }).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn those_that_say_nothing_are_bounded_and_make_room_when_they_go() {
    let (_responder, address) = responder(Ipv4Addr::LOCALHOST.into());
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(connect(address).await);
    }
    let waiting = tokio::spawn(async move { get(connect(address).await, false).await });
    tokio::task::yield_now().await;
    silent.pop();
    assert_eq!(waiting.await.unwrap(), "asleep, and ready\n");
}
