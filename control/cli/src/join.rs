// SPDX-License-Identifier: Apache-2.0
//! `plinth node join`: a token for a certificate, and the files that plinthd starts with.

use crate::args::JoinArguments;
use crate::init::{InitError, folder};
use plinth_api::{Join, JoinReply, Refusal};
use plinth_client::{
    ConfigError, DaemonConfig, Identity, IdentityError, JoinError, NodeConfig, NodeKey, Token,
    TokenError, tls_folder,
};

#[derive(Debug, thiserror::Error)]
pub enum JoinFailure {
    #[error("the token cannot be used")]
    Token(#[from] TokenError),
    #[error(transparent)]
    Folder(#[from] InitError),
    #[error("the node's key and certificate cannot be kept")]
    Identity(#[from] IdentityError),
    #[error("the node's configuration cannot be written")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Refused(Refusal),
}

impl JoinFailure {
    pub(crate) const fn is_connection(&self) -> bool {
        matches!(self, Self::Join(_))
    }
}

/// Joins; answers what to say about it.
pub(crate) async fn join(arguments: &JoinArguments, json: bool) -> Result<String, JoinFailure> {
    let token: Token = arguments.token.parse()?;
    let state = &arguments.state_dir;
    let path = DaemonConfig::path(state);
    if path.exists() {
        return Err(InitError::Exists { path }.into());
    }
    let tls = tls_folder(state);
    folder(state, 0o755)?;
    folder(&tls, 0o700)?;
    let key = NodeKey::generate()?;
    let underlay = arguments.underlay.config();
    let request = Join {
        name: arguments.name.clone(),
        secret: token.secret,
        public_key: key.public(),
        agent: arguments.agent,
        underlay: underlay.as_ref().map(plinth_client::UnderlayConfig::underlay),
    };
    let JoinReply { result } = plinth_client::join(arguments.join, &token, &request).await?;
    let joined = result.map_err(JoinFailure::Refused)?;
    Identity::save(&tls, "node", &joined.certificate, &key, &joined.ca)?;
    let node = NodeConfig { name: arguments.name.clone(), listen: arguments.agent, underlay };
    DaemonConfig { service: None, node: Some(node) }.save(state)?;
    if json {
        let value = serde_json::json!({ "node": arguments.name, "state_dir": state });
        return Ok(format!("{value}\n"));
    }
    let state = state.display();
    Ok(format!("{} is node {}\n\nNext: plinthd --state-dir {state}\n", arguments.name, joined.node))
}
