// SPDX-License-Identifier: Apache-2.0
//! The called end.

use crate::exchange::Exchange;
use crate::identity::{Identity, Role, has_name};
use crate::tls;
use quinn::{Connection, Endpoint, Incoming};
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a handshake may take. One that hangs occupies its task no longer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// The close code that goes with a reason in words.
const CLOSE_ROLE: u32 = 1;

/// Waits for peers of one role.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    /// `None` on the join port, where nobody has a certificate.
    callers: Option<Role>,
    sessions: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Session>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on UDP {address}; is another plinthd running, or the address not ours?")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the certificate or key is not usable; make a new one")]
    Tls(#[source] rustls::Error),
}

impl Listener {
    /// Listens for peers that have a certificate of the cluster CA for the role `callers`.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        callers: Role,
    ) -> Result<Self, ListenError> {
        let config = tls::server(identity).map_err(ListenError::Tls)?;
        Self::start(address, config, Some(callers))
    }

    /// Listens for nodes that have a token and no certificate.
    pub fn bind_join(address: SocketAddr, identity: &Identity) -> Result<Self, ListenError> {
        let config = tls::join_server(identity).map_err(ListenError::Tls)?;
        Self::start(address, config, None)
    }

    fn start(
        address: SocketAddr,
        config: quinn::ServerConfig,
        callers: Option<Role>,
    ) -> Result<Self, ListenError> {
        let endpoint = Endpoint::server(config, address)
            .map_err(|source| ListenError::Bind { address, source })?;
        let (sender, sessions) = tokio::sync::mpsc::channel(64);
        tokio::spawn(receive(endpoint.clone(), callers, sender));
        Ok(Self { endpoint, callers, sessions: tokio::sync::Mutex::new(sessions) })
    }

    /// The address in use, with the port that the system chose if none was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The role of those who may call; `None` on the join port.
    pub const fn callers(&self) -> Option<Role> {
        self.callers
    }

    /// The next peer that may call. `None` after [`Self::close`].
    pub async fn accept(&self) -> Option<Session> {
        self.sessions.lock().await.recv().await
    }

    /// Ends every session and accepts no more.
    pub fn close(&self) {
        self.endpoint.close(0_u8.into(), b"plinthd stops; try again when it is back");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Makes sessions of handshakes, each in its own task, so that a slow one holds up nobody.
async fn receive(
    endpoint: Endpoint,
    callers: Option<Role>,
    sessions: tokio::sync::mpsc::Sender<Session>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let sessions = sessions.clone();
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, admit(incoming, callers));
            if let Ok(Some(session)) = handshake.await {
                // The receiver is gone when the listener is: then so is the session.
                let _ = sessions.send(session).await;
            }
        });
    }
}

async fn admit(incoming: Incoming, callers: Option<Role>) -> Option<Session> {
    let remote = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(err) => {
            tracing::info!(%remote, err = %err, "peer refused");
            return None;
        }
    };
    if let Some(role) = callers
        && !has_role(&connection, role)
    {
        tracing::info!(%remote, "peer refused: its certificate is for another role");
        let reason = format!(
            "the certificate shown is not for the role {:?}, which alone may call here",
            role.word()
        );
        connection.close(CLOSE_ROLE.into(), reason.as_bytes());
        return None;
    }
    Some(Session { connection })
}

fn has_role(connection: &Connection, role: Role) -> bool {
    let Some(identity) = connection.peer_identity() else { return false };
    let Ok(chain) = identity.downcast::<Vec<CertificateDer<'static>>>() else { return false };
    chain.first().is_some_and(|certificate| has_name(certificate, role.name()))
}

/// One peer's connection.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
}

impl Session {
    /// The next request's stream. `None` when the peer is gone.
    pub async fn accept(&self) -> Option<Exchange> {
        let (send, receive) = self.connection.accept_bi().await.ok()?;
        Some(Exchange::new(send, receive))
    }

    pub fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }
}
