// SPDX-License-Identifier: Apache-2.0
//! How the control programs reach each other: QUIC with mutual TLS.
//!
//! Every peer has a certificate of the cluster CA that says what it is ([`Role`]): the service,
//! a node, an operator. Without one there is no connection, except on the join port, where a
//! one-time [`Token`] buys one. A caller opens one QUIC stream for each request; frames are
//! those of `plinth-api`.
//!
//! ```text
//!   Dialer ── connect ──▶ Peer ── call / open ──▶ Exchange
//!   Listener ── accept ──▶ Session ── accept ──▶ Exchange
//!   Agent (trait)  ◀── serve_agent(Listener)
//! ```

mod agent;
mod ca;
mod config;
mod dial;
mod exchange;
mod identity;
mod listen;
mod tls;
mod token;
mod words;

pub use agent::{Agent, ByteStream, serve_agent};
pub use ca::{CaError, ClusterCa};
pub use config::{
    ConfigError, DaemonConfig, NodeConfig, OperatorConfig, ServiceConfig, UnderlayConfig,
    tls_folder,
};
pub use dial::{ConnectError, Dialer, JoinError, Peer, join};
pub use exchange::{CallError, Exchange};
pub use identity::{Identity, IdentityError, NodeKey, Role, certificate_name};
pub use listen::{ListenError, Listener, Session};
pub use token::{Token, TokenError};
