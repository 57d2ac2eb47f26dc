// SPDX-License-Identifier: Apache-2.0
//! One request and what belongs to it: a QUIC stream with frames on it.

use crate::agent::ByteStream;
use crate::words::words;
use plinth_api::frame::{self, EncodeError, FrameError, HEADER_SIZE, Header, Message};
use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::io::{AsyncRead, AsyncWriteExt};

/// A stream in both directions. The caller sends a request and receives the reply; the callee
/// the other way round. After that it may carry raw bytes.
#[derive(Debug)]
pub struct Exchange {
    send: SendStream,
    receive: RecvStream,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The text has the remedy.
    #[error("the connection failed: {words}")]
    Connection { words: String, source: ConnectionError },
    #[error("the peer ended the exchange early; its log says why")]
    Ended,
    #[error("the message is not usable")]
    Frame(#[from] FrameError),
    #[error("the message cannot be sent")]
    Encode(#[from] EncodeError),
    #[error("no answer within {seconds} s")]
    Timeout { seconds: u64 },
    #[error("the local end of the stream failed")]
    Local(#[source] std::io::Error),
}

impl CallError {
    /// Whether the peer may not have got the request, or the answer may be lost: the outcome is
    /// not known.
    pub fn is_connection(&self) -> bool {
        matches!(self, Self::Connection { .. } | Self::Ended | Self::Timeout { .. })
    }
}

impl From<ConnectionError> for CallError {
    fn from(source: ConnectionError) -> Self {
        Self::Connection { words: words(&source), source }
    }
}

impl From<WriteError> for CallError {
    fn from(err: WriteError) -> Self {
        match err {
            WriteError::ConnectionLost(source) => source.into(),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Ended
            }
        }
    }
}

impl From<ReadExactError> for CallError {
    fn from(err: ReadExactError) -> Self {
        match err {
            ReadExactError::ReadError(ReadError::ConnectionLost(source)) => source.into(),
            ReadExactError::FinishedEarly(_) | ReadExactError::ReadError(_) => Self::Ended,
        }
    }
}

impl Exchange {
    pub(crate) const fn new(send: SendStream, receive: RecvStream) -> Self {
        Self { send, receive }
    }

    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), CallError> {
        let frame = frame::encode(message)?;
        Ok(self.send.write_all(&frame).await?)
    }

    /// Sends raw bytes, after a message that announced them.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), CallError> {
        Ok(self.send.write_all(bytes).await?)
    }

    /// Receives the message that is due. A frame of another kind, version or over its limit is
    /// refused before its payload is read.
    pub async fn receive<M: Message>(&mut self) -> Result<M, CallError> {
        let mut header = [0; HEADER_SIZE];
        self.receive.read_exact(&mut header).await?;
        let header = Header::parse(header)?.expect(M::KIND)?;
        let mut payload = vec![0; header.length as usize];
        self.receive.read_exact(&mut payload).await?;
        Ok(frame::decode(&payload)?)
    }

    /// Says that nothing more will be sent, and receives what is due.
    pub async fn end_and_receive<M: Message>(&mut self) -> Result<M, CallError> {
        let _ = self.send.finish();
        self.receive().await
    }

    /// The raw bytes that follow a request.
    pub const fn input(&mut self) -> &mut (impl AsyncRead + Send + Unpin + use<>) {
        &mut self.receive
    }

    /// Nothing more will be sent; waits until the peer has it all.
    pub async fn finish(mut self) -> Result<(), CallError> {
        let _ = self.send.finish();
        match self.send.stopped().await {
            Ok(_) => Ok(()),
            Err(quinn::StoppedError::ConnectionLost(source)) => Err(source.into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(CallError::Ended),
        }
    }

    /// Carries bytes both ways between the peer and `local` until one of them ends.
    pub async fn join_with(mut self, mut local: impl ByteStream) -> Result<(), CallError> {
        let (mut local_read, mut local_write) = tokio::io::split(&mut local);
        let outward = tokio::io::copy(&mut local_read, &mut self.send);
        let inward = tokio::io::copy(&mut self.receive, &mut local_write);
        let result = tokio::select! {
            done = outward => done,
            done = inward => done,
        };
        result.map_err(CallError::Local)?;
        let _ = local_write.shutdown().await;
        self.finish().await
    }

    /// Both halves as one stream of bytes.
    pub fn into_stream(self) -> impl ByteStream {
        tokio::io::join(self.receive, self.send)
    }
}
