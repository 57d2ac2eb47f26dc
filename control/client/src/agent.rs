// SPDX-License-Identifier: Apache-2.0
//! The contract of a node agent, and the QUIC server in front of one.
//!
//! The service calls, the agent answers. Everything is level-triggered and idempotent: the
//! service sends the same spec or command again whenever it is not sure, and the agent compares
//! it with what is.

use crate::exchange::{CallError, Exchange};
use crate::listen::{Listener, Session};
use plinth_api::{AgentAnswer, AgentReply, AgentRequest, Command, ImportSource, NodeSpec, Refusal};
use plinth_ids::{Epoch, VmId};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A console: bytes both ways. A tokio `UnixStream` is one.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

/// What the service asks of a node.
///
/// Calls come from many tasks at once. A call whose caller has gone is dropped at its next
/// await: an act that must not stop half-way runs in a task of its own.
pub trait Agent: Send + Sync + 'static {
    /// Takes the spec and starts to make it true; answers when it is kept, with its epoch. A
    /// spec older than the one in force is refused, the same one again is taken.
    fn apply(&self, spec: NodeSpec) -> impl Future<Output = Result<Epoch, Refusal>> + Send;

    /// What is seen now. Answers within a second: the service takes silence for death.
    fn status(&self) -> impl Future<Output = plinth_api::NodeStatus> + Send;

    /// Carries out one command and answers when it is done. `input` has the bytes of
    /// [`ImportSource::Stream`] and ends after them, or with an error if they stop coming; for
    /// every other command it is empty.
    fn perform(
        &self,
        command: Command,
        input: &mut (dyn AsyncRead + Send + Unpin),
    ) -> impl Future<Output = Result<AgentAnswer, Refusal>> + Send;

    /// Attaches to a VM's serial console.
    fn console(
        &self,
        vm: VmId,
    ) -> impl Future<Output = Result<Box<dyn ByteStream>, Refusal>> + Send;
}

/// Answers every session of `listener` until the endpoint is closed. Returns then.
pub async fn serve_agent<A: Agent>(listener: Listener, agent: Arc<A>) {
    while let Some(session) = listener.accept().await {
        tokio::spawn(serve_session(session, Arc::clone(&agent)));
    }
}

async fn serve_session<A: Agent>(session: Session, agent: Arc<A>) {
    while let Some(exchange) = session.accept().await {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move {
            if let Err(err) = answer(exchange, agent.as_ref()).await {
                tracing::debug!(err = &err as &dyn std::error::Error, "request ended early");
            }
        });
    }
}

async fn answer<A: Agent>(mut exchange: Exchange, agent: &A) -> Result<(), CallError> {
    let result = match exchange.receive::<AgentRequest>().await? {
        AgentRequest::Apply(spec) => agent.apply(spec).await.map(AgentAnswer::Applied),
        AgentRequest::Status => Ok(AgentAnswer::Status(agent.status().await)),
        AgentRequest::Perform(command) => {
            let length = input_length(&command);
            let mut input = Announced { inner: exchange.input(), left: length };
            agent.perform(command, &mut input).await
        }
        AgentRequest::Console(vm) => match agent.console(vm).await {
            Ok(console) => return serve_console(exchange, console).await,
            Err(refusal) => Err(refusal),
        },
    };
    exchange.send(&AgentReply { result }).await?;
    exchange.finish().await
}

/// How many raw bytes follow a command on its stream.
const fn input_length(command: &Command) -> u64 {
    match command {
        Command::ImageImport { source: ImportSource::Stream { length }, .. } => *length,
        _ => 0,
    }
}

async fn serve_console(
    mut exchange: Exchange,
    console: Box<dyn ByteStream>,
) -> Result<(), CallError> {
    exchange.send(&AgentReply { result: Ok(AgentAnswer::Done) }).await?;
    exchange.join_with(console).await
}

/// Exactly the bytes that were announced: a stream that ends before them reads as an error, so
/// that half an image is never taken for a whole one.
struct Announced<R> {
    inner: R,
    left: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Announced<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        if read == 0 {
            let text = format!("{} announced bytes did not come", self.left);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
        }
        buf.advance(read);
        self.left -= read as u64;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn an_input_that_ends_early_is_an_error() {
        let mut bytes = Vec::new();
        let mut whole = Announced { inner: &b"abcdef"[..], left: 4 };
        assert_eq!(whole.read_to_end(&mut bytes).await.unwrap(), 4);
        assert_eq!(bytes, b"abcd");
        let mut short = Announced { inner: &b"abc"[..], left: 4 };
        let err = short.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }
}
