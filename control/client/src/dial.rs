// SPDX-License-Identifier: Apache-2.0
//! The calling end.

use crate::exchange::{CallError, Exchange};
use crate::identity::{Identity, Role};
use crate::tls;
use crate::token::Token;
use crate::words::words;
use plinth_api::frame::Message;
use plinth_api::{Join, JoinReply};
use quinn::{Connection, ConnectionError, Endpoint};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// How long a connection may take to come up.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Makes connections in one identity.
#[derive(Debug)]
pub struct Dialer {
    v4: Endpoint,
    /// Absent where the system has no IPv6.
    v6: Option<Endpoint>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
    #[error("the certificate or key is not usable; make a new one")]
    Tls(#[source] rustls::Error),
    #[error("cannot connect to {address}")]
    Address { address: SocketAddr, source: quinn::ConnectError },
    /// The peer was there and said no, or we did. The text has the remedy.
    #[error("{address} refused the connection: {words}")]
    Refused { address: SocketAddr, words: String, source: ConnectionError },
    #[error("{address} cannot be reached: {words}")]
    Unreachable { address: SocketAddr, words: String },
}

impl Dialer {
    pub fn new(identity: &Identity) -> Result<Self, ConnectError> {
        Self::with(tls::client(identity).map_err(ConnectError::Tls)?)
    }

    /// Without a certificate: a client that every listener but the join port's refuses. For
    /// proving that; `ca` is a PEM file.
    pub fn anonymous(ca: &Path) -> Result<Self, ConnectError> {
        let ca = CertificateDer::from_pem_file(ca)
            .map_err(|err| ConnectError::Tls(rustls::Error::General(err.to_string())))?;
        Self::with(tls::anonymous_client(&ca).map_err(ConnectError::Tls)?)
    }

    fn with(config: quinn::ClientConfig) -> Result<Self, ConnectError> {
        let open = |address: SocketAddr| {
            let mut endpoint = Endpoint::client(address)?;
            endpoint.set_default_client_config(config.clone());
            Ok(endpoint)
        };
        let v4 = open((Ipv4Addr::UNSPECIFIED, 0).into()).map_err(ConnectError::Socket)?;
        let v6 = open((Ipv6Addr::UNSPECIFIED, 0).into()).ok();
        Ok(Self { v4, v6 })
    }

    /// Connects to the peer at `address`, whose certificate must carry `name`:
    /// [`Role::name`] of the service, [`crate::certificate_name`] of a node.
    pub async fn connect(&self, address: SocketAddr, name: &str) -> Result<Peer, ConnectError> {
        let endpoint = match (address.is_ipv6(), &self.v6) {
            (true, Some(v6)) => v6,
            (true, None) | (false, _) => &self.v4,
        };
        let connecting = endpoint
            .connect(address, name)
            .map_err(|source| ConnectError::Address { address, source })?;
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(connection)) => Ok(Peer { connection }),
            Ok(Err(source @ ConnectionError::TimedOut)) => {
                Err(ConnectError::Unreachable { address, words: words(&source) })
            }
            Ok(Err(source)) => {
                Err(ConnectError::Refused { address, words: words(&source), source })
            }
            Err(_) => {
                Err(ConnectError::Unreachable { address, words: words(&ConnectionError::TimedOut) })
            }
        }
    }
}

/// A connection to a peer that showed the right certificate.
#[derive(Clone, Debug)]
pub struct Peer {
    connection: Connection,
}

impl Peer {
    /// Opens an exchange and sends the request; what comes back is for the caller to receive.
    pub async fn open<Q: Message>(&self, request: &Q) -> Result<Exchange, CallError> {
        let (send, receive) = self.connection.open_bi().await?;
        let mut exchange = Exchange::new(send, receive);
        exchange.send(request).await?;
        Ok(exchange)
    }

    /// One request, one reply, within `limit`.
    pub async fn call<Q: Message, R: Message>(
        &self,
        request: &Q,
        limit: Duration,
    ) -> Result<R, CallError> {
        let call = async {
            let mut exchange = self.open(request).await?;
            let reply = exchange.receive().await?;
            // The reply is here; whether its end is, matters to nobody.
            Ok(reply)
        };
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or(Err(CallError::Timeout { seconds: limit.as_secs() }))
    }

    /// Whether both are the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Ends the connection at once, without waiting for the peer.
    pub fn close(&self) {
        self.connection.close(0_u8.into(), b"done");
    }
}

/// Why a node could not join. The reply's own refusal is in [`JoinReply`].
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("cannot reach the cluster")]
    Connect(#[from] ConnectError),
    #[error("the cluster did not answer")]
    Call(#[from] CallError),
}

/// Sends a join request to the join port of the service at `address`.
pub async fn join(
    address: SocketAddr,
    token: &Token,
    request: &Join,
) -> Result<JoinReply, JoinError> {
    let config = tls::join_client(token.ca_fingerprint).map_err(ConnectError::Tls)?;
    let peer = Dialer::with(config)?.connect(address, Role::Service.name()).await?;
    Ok(peer.call(request, Duration::from_secs(20)).await?)
}
