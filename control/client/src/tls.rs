// SPDX-License-Identifier: Apache-2.0
//! TLS settings: 1.3 only, certificates of the cluster CA on both ends.

use crate::identity::Identity;
use crate::token::sha256;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use std::sync::Arc;
use std::time::Duration;

/// The protocol's name in the TLS handshake. The main and the join port differ, so that a
/// connection to the wrong one is refused before a message is sent.
const ALPN: &[u8] = b"plinth/1";
const ALPN_JOIN: &[u8] = b"plinth-join/1";

/// A peer that says nothing for so long is gone.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Streams that one peer may have open at once.
const STREAMS_MAX: u32 = 64;

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The settings of a server that refuses who has no certificate.
pub(crate) fn server(identity: &Identity) -> Result<quinn::ServerConfig, rustls::Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&identity.ca)?), provider())
            .build()
            .map_err(|err| rustls::Error::General(err.to_string()))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    finish_server(config, ALPN)
}

/// The settings of the join port: the client has no certificate yet.
pub(crate) fn join_server(identity: &Identity) -> Result<quinn::ServerConfig, rustls::Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        // The CA goes along: a joining node finds it by its fingerprint.
        .with_single_cert(
            vec![identity.certificate.clone(), identity.ca.clone()],
            identity.key.clone_key(),
        )?;
    finish_server(config, ALPN_JOIN)
}

fn finish_server(
    mut config: ServerConfig,
    alpn: &[u8],
) -> Result<quinn::ServerConfig, rustls::Error> {
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicServerConfig::try_from(config)
        .map_err(|err| rustls::Error::General(err.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}

/// The settings of a client with a certificate.
pub(crate) fn client(identity: &Identity) -> Result<quinn::ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.ca)?)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    finish_client(config, ALPN)
}

/// The settings of a client that trusts a CA but has no certificate of it. The service refuses
/// it; the tests prove that.
pub(crate) fn anonymous_client(
    ca: &CertificateDer<'static>,
) -> Result<quinn::ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    finish_client(config, ALPN)
}

/// The settings of a joining node, which knows no more than the CA's fingerprint.
pub(crate) fn join_client(ca_fingerprint: [u8; 32]) -> Result<quinn::ClientConfig, rustls::Error> {
    let verifier = FingerprintVerifier { ca_fingerprint, provider: provider() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finish_client(config, ALPN_JOIN)
}

fn finish_client(
    mut config: ClientConfig,
    alpn: &[u8],
) -> Result<quinn::ClientConfig, rustls::Error> {
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(config)
        .map_err(|err| rustls::Error::General(err.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}

fn roots(ca: &CertificateDer<'static>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(roots)
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0_u8.into())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(
            IDLE_LIMIT.try_into().expect("ten seconds fit QUIC's millisecond counter"),
        ));
    Arc::new(transport)
}

/// Trusts the CA whose certificate has the fingerprint of a token, if the server sends it along,
/// and whatever that CA signed as the service.
#[derive(Debug)]
struct FingerprintVerifier {
    ca_fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.ca_fingerprint)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let roots = Arc::new(roots(&ca.clone().into_owned())?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .build()
                .map_err(|err| rustls::Error::General(err.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // QUIC has no TLS 1.2.
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
