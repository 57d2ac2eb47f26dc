// SPDX-License-Identifier: Apache-2.0
//! `plinth vm console`: the terminal, raw, and the VM's serial line.

use crate::failure::Failure;
use plinth_api::{Reply, Request};
use plinth_client::Peer;
use plinth_ids::Name;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Ctrl-].
const LEAVE: u8 = 0x1d;

pub(crate) async fn attach(peer: &Peer, name: &Name) -> Result<(), Failure> {
    let mut exchange = peer.open(&Request::VmConsole(name.clone())).await?;
    let reply: Reply = exchange.receive().await?;
    reply.result?;
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        eprintln!("console of {name}; Ctrl-] leaves it\r");
    }
    let raw = if is_terminal { Some(Raw::enter()?) } else { None };
    let (mut incoming, mut outgoing) = tokio::io::split(exchange.into_stream());
    let keys = async {
        if typed(tokio::io::stdin(), &mut outgoing).await == Typed::Ended {
            // No more to type, as in a script; what the VM says still counts.
            std::future::pending::<()>().await;
        }
    };
    let screen = show(&mut incoming, tokio::io::stdout());
    tokio::select! {
        () = keys => {}
        result = screen => result.map_err(Failure::Terminal)?,
    }
    drop(raw);
    if is_terminal {
        eprintln!();
    }
    Ok(())
}

#[derive(Debug, Eq, PartialEq)]
enum Typed {
    Left,
    Ended,
}

/// Sends what is typed until the leaving key or the end.
async fn typed(mut keys: impl AsyncRead + Unpin, mut vm: impl AsyncWrite + Unpin) -> Typed {
    let mut buffer = [0; 1024];
    loop {
        let read = match keys.read(&mut buffer).await {
            Ok(read) if read > 0 => read,
            _ => return Typed::Ended,
        };
        let bytes = &buffer[..read];
        let end = bytes.iter().position(|byte| *byte == LEAVE);
        let sent = vm.write_all(&bytes[..end.unwrap_or(read)]).await;
        if end.is_some() || sent.is_err() || vm.flush().await.is_err() {
            return Typed::Left;
        }
    }
}

async fn show(
    mut vm: impl AsyncRead + Unpin,
    mut screen: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        // The line ends when the VM is gone: that is an end, not a failure.
        let Ok(read @ 1..) = vm.read(&mut buffer).await else { return Ok(()) };
        screen.write_all(&buffer[..read]).await?;
        screen.flush().await?;
    }
}

/// The terminal without line editing and signals; as it was before, when this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Self, Failure> {
        let failed = |err: rustix::io::Errno| Failure::Terminal(err.into());
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_leaving_key_ends_the_console_and_is_not_sent() {
        let mut sent = Vec::new();
        assert_eq!(typed(&b"ls\n\x1dmore"[..], &mut sent).await, Typed::Left);
        assert_eq!(sent, b"ls\n");
    }

    #[tokio::test]
    async fn the_end_of_a_script_is_not_the_end_of_the_console() {
        let mut sent = Vec::new();
        assert_eq!(typed(&b"poweroff\n"[..], &mut sent).await, Typed::Ended);
        assert_eq!(sent, b"poweroff\n");
    }
}
