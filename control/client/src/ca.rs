// SPDX-License-Identifier: Apache-2.0
//! The cluster's certificate authority: made once by `plinth cluster init`, kept by the service.

use crate::identity::{IdentityError, NodeKey, Role, certificate_name, write_file};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use plinth_ids::Name;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
    date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// How many years the CA and its certificates are good for. Renewing them is no verb yet.
const VALIDITY_YEARS: i32 = 20;

/// The issuer's name; constant, so that the issuer can be rebuilt from its key alone.
const CA_NAME: &str = "Plinth cluster CA";

/// Signs certificates for one cluster.
#[derive(Debug)]
pub struct ClusterCa {
    certificate: String,
    key: KeyPair,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot read the cluster CA; `plinth cluster init` makes one")]
    Load(#[source] IdentityError),
    #[error("cannot read the cluster CA's key")]
    Key(#[source] rcgen::Error),
    #[error("cannot write the cluster CA")]
    Save(#[source] IdentityError),
    #[error("cannot sign a certificate")]
    Sign(#[source] rcgen::Error),
    #[error("the public key is no point on P-256")]
    PublicKey,
}

impl ClusterCa {
    pub fn create() -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
        let certificate = ca_params().self_signed(&key).map_err(CaError::Sign)?.pem();
        Ok(Self { certificate, key })
    }

    /// Reads `ca.pem` and `ca.key`.
    pub fn load(folder: &Path) -> Result<Self, CaError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path)
                .map_err(|source| CaError::Load(IdentityError::Read { path, source }))
        };
        let certificate = read("ca.pem")?;
        CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|source| {
            let path = folder.join("ca.pem");
            CaError::Load(IdentityError::Pem { path, what: "a certificate", source })
        })?;
        let key = KeyPair::from_pem(&read("ca.key")?).map_err(CaError::Key)?;
        Ok(Self { certificate, key })
    }

    /// Writes what [`Self::load`] reads.
    pub fn save(&self, folder: &Path) -> Result<(), CaError> {
        write_file(&folder.join("ca.key"), &self.key.serialize_pem(), 0o600)
            .and_then(|()| write_file(&folder.join("ca.pem"), &self.certificate, 0o644))
            .map_err(CaError::Save)
    }

    /// The CA's own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// SHA-256 of the CA's certificate: what a token carries.
    pub fn fingerprint(&self) -> [u8; 32] {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .expect("the text was checked in load or made by rcgen");
        crate::token::sha256(&der)
    }

    /// A certificate, PEM, for the owner of a key. `node` is given for [`Role::Node`].
    pub fn sign(
        &self,
        public_key: &[u8],
        role: Role,
        node: Option<&Name>,
    ) -> Result<String, CaError> {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
            .map_err(|_| CaError::PublicKey)?;
        let mut names = vec![role.name().to_owned()];
        names.extend(node.map(certificate_name));
        let mut params = CertificateParams::new(names).map_err(CaError::Sign)?;
        let subject = node.map_or(role.word(), Name::as_str);
        params.distinguished_name = distinguished_name(subject);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params);
        let issuer = Issuer::new(ca_params(), &self.key);
        let key = PublicKey(public_key);
        params.signed_by(&key, &issuer).map(|signed| signed.pem()).map_err(CaError::Sign)
    }

    /// A fresh key with its certificate, PEM.
    pub fn issue(&self, role: Role, node: Option<&Name>) -> Result<(NodeKey, String), CaError> {
        let key = NodeKey::generate().map_err(CaError::Save)?;
        let certificate = self.sign(&key.public(), role, node)?;
        Ok((key, certificate))
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    params
}

fn distinguished_name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// From the start of last year, so that a peer whose clock is behind accepts it.
fn set_validity(params: &mut CertificateParams) {
    const YEAR_SECONDS: u64 = 31_556_952;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let years = i32::try_from(since_epoch.as_secs() / YEAR_SECONDS).unwrap_or(0);
    let year = 1970 + years;
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + VALIDITY_YEARS, 1, 1);
}

/// Somebody else's public key on P-256.
struct PublicKey<'a>(&'a [u8]);

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
