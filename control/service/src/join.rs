// SPDX-License-Identifier: Apache-2.0
//! The join port: a token buys a certificate, once.

use crate::service::Shared;
use crate::store::now;
use plinth_api::{Code, Join, JoinReply, Joined, Refusal};
use plinth_client::{CallError, Exchange, Listener, Role, Session, Token};
use std::sync::Arc;
use std::time::Duration;

/// A caller without a certificate gets no more of our time than this.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn serve(listener: Listener, shared: Arc<Shared>) {
    while let Some(session) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let done = tokio::time::timeout(LIMIT, serve_session(session, &shared)).await;
            if let Ok(Err(err)) = done {
                tracing::debug!(err = %plinth_obs::Chain(&err), "join ended early");
            }
        });
    }
}

/// One request a session: who guesses tokens pays a handshake for each guess.
async fn serve_session(session: Session, shared: &Shared) -> Result<(), CallError> {
    let Some(mut exchange) = session.accept().await else { return Ok(()) };
    answer(&mut exchange, shared).await?;
    exchange.finish().await
}

async fn answer(exchange: &mut Exchange, shared: &Shared) -> Result<(), CallError> {
    let request: Join = exchange.receive().await?;
    let name = request.name.clone();
    let result = admit(request, shared).await;
    match &result {
        Ok(joined) => tracing::info!(%name, node = %joined.node, "node joined"),
        Err(refusal) => tracing::warn!(%name, err = %refusal, "node refused"),
    }
    exchange.send(&JoinReply { result }).await
}

async fn admit(request: Join, shared: &Shared) -> Result<Joined, Refusal> {
    // Signed before the token is spent, so that a bad key costs no token. Nobody sees the
    // certificate unless the record is committed.
    let certificate = shared
        .ca
        .sign(&request.public_key, Role::Node, Some(&request.name))
        .map_err(|err| Refusal::new(Code::Invalid, format!("the node's key is refused: {err}")))?;
    let digest = hex(&Token::digest(&request.secret));
    let Join { name, agent, underlay, .. } = request;
    let node = shared
        .store
        .transact(|cluster, _| cluster.node_join(&digest, name, agent, underlay, now()))
        .await?;
    Ok(Joined { node, certificate, ca: shared.ca.certificate().to_owned() })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
