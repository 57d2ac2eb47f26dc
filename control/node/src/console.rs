// SPDX-License-Identifier: Apache-2.0
//! A VM's serial console as a stream of bytes, for one person at a time.

use crate::agent::{Inner, lock};
use plinth_api::{Code, Refusal};
use plinth_ids::VmId;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The console's bytes; the next person may attach when it is dropped.
#[derive(Debug)]
pub(crate) struct Console {
    stream: UnixStream,
    _seat: Seat,
}

impl Console {
    pub(crate) async fn attach(inner: Arc<Inner>, vm: VmId) -> Result<Self, Refusal> {
        let is_known = lock(&inner.runners).contains_key(&vm);
        if !is_known {
            return Err(Refusal::new(Code::NotFound, format!("{vm} is not on this node")));
        }
        // QEMU takes one connection; a second would wait without a word.
        let seat = Seat::take(inner, vm)?;
        let folder = seat.inner.config.places.vm(vm);
        let folder = folder.map_err(|error| Refusal::new(Code::Failed, error.to_string()))?;
        let stream = UnixStream::connect(folder.console()).await.map_err(|_| {
            Refusal::new(Code::State, "the VM is not running").remedy("start it with `vm start`")
        })?;
        Ok(Self { stream, _seat: seat })
    }
}

/// The one place at a console, free again when it is dropped.
#[derive(Debug)]
struct Seat {
    inner: Arc<Inner>,
    vm: VmId,
}

impl Seat {
    fn take(inner: Arc<Inner>, vm: VmId) -> Result<Self, Refusal> {
        if !lock(&inner.consoles).insert(vm) {
            return Err(Refusal::new(Code::InUse, "somebody is at this console")
                .remedy("ask them to leave it"));
        }
        Ok(Self { inner, vm })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.inner.consoles).remove(&self.vm);
    }
}

impl AsyncRead for Console {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Console {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
