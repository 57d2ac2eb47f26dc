// SPDX-License-Identifier: Apache-2.0
//! Who a program is to its peers: a key, a certificate, and the CA it trusts.
//!
//! What a peer is stands in its certificate as DNS names under `.plinth`, which no resolver
//! knows: `service.plinth`, `node.plinth` with `NAME.node.plinth`, `operator.plinth`. Only the
//! CA writes them.

use plinth_ids::Name;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a certificate allows its owner to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Answers operators, calls nodes.
    Service,
    /// Answers the service.
    Node,
    /// Calls the service.
    Operator,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Service, Self::Node, Self::Operator];

    /// The DNS name that says so in a certificate.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service.plinth",
            Self::Node => "node.plinth",
            Self::Operator => "operator.plinth",
        }
    }

    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }
}

/// The name by which the service checks that it reached this node and no other.
pub fn certificate_name(node: &Name) -> String {
    format!("{node}.node.plinth")
}

/// A key with its certificate, and the CA.
#[derive(Debug)]
pub struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) ca: CertificateDer<'static>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is not a PEM file of {what}", path.display())]
    Pem { path: PathBuf, what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
}

impl Identity {
    /// Reads `STEM.pem` and `STEM.key` beside `ca.pem`.
    pub fn load(folder: &Path, stem: &str) -> Result<Self, IdentityError> {
        let certificate = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}.key"));
        let ca = folder.join("ca.pem");
        Ok(Self {
            certificate: CertificateDer::from_pem_slice(&read(&certificate)?)
                .map_err(pem(&certificate, "a certificate"))?,
            key: PrivateKeyDer::from_pem_slice(&read(&key)?).map_err(pem(&key, "a private key"))?,
            ca: CertificateDer::from_pem_slice(&read(&ca)?).map_err(pem(&ca, "a certificate"))?,
        })
    }

    /// Writes what [`Self::load`] reads; the key is for its owner's eyes only.
    pub fn save(
        folder: &Path,
        stem: &str,
        certificate: &str,
        key: &NodeKey,
        ca: &str,
    ) -> Result<(), IdentityError> {
        write_file(&folder.join("ca.pem"), ca, 0o644)?;
        write_file(&folder.join(format!("{stem}.key")), &key.pem(), 0o600)?;
        write_file(&folder.join(format!("{stem}.pem")), certificate, 0o644)
    }
}

/// Whether the certificate of a peer carries this name.
pub(crate) fn has_name(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
    let Ok(name) = ServerName::try_from(name) else { return false };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

/// A private key that never leaves its machine.
#[derive(Debug)]
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A fresh one on P-256.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(IdentityError::Key)
    }

    /// The public half, as [`plinth_api::Join`] carries it.
    pub fn public(&self) -> Vec<u8> {
        self.0.public_key_raw().to_vec()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
}

fn pem<'a>(
    path: &'a Path,
    what: &'static str,
) -> impl FnOnce(rustls::pki_types::pem::Error) -> IdentityError + 'a {
    move |source| IdentityError::Pem { path: path.to_owned(), what, source }
}

/// Writes beside and renames, so that a reader or a crash finds the old file or the new one.
pub(crate) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let write = || {
        let beside = path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| IdentityError::Write { path: path.to_owned(), source })
}
