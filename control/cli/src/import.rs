// SPDX-License-Identifier: Apache-2.0
//! `plinth image import`: a file's bytes to the service, with a bar for people.

use crate::args::ImportArguments;
use crate::failure::Failure;
use plinth_api::{Answer, DiskFormat, ImageImport, ImportSource, Reply, Request};
use plinth_client::{Exchange, Peer};
use plinth_planner::Size;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// The first bytes of a qcow2 file (QEMU, docs/interop/qcow2).
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// How long the nodes may take to make a volume of what they got.
const FINISH_LIMIT: Duration = Duration::from_secs(3700);

const PIECE: usize = 256 * 1024;

pub(crate) async fn import(
    peer: &Peer,
    arguments: &ImportArguments,
    json: bool,
) -> Result<Answer, Failure> {
    let request = |format, source| {
        Request::ImageImport(ImageImport {
            name: arguments.name.clone(),
            pools: arguments.pool.clone(),
            format,
            source,
        })
    };
    if arguments.on_node {
        let format = arguments.format.map_or(DiskFormat::Raw, DiskFormat::from);
        let path = ImportSource::Path(arguments.file.to_string_lossy().into_owned());
        let mut exchange = peer.open(&request(format, path)).await?;
        return finish(&mut exchange).await;
    }
    let failed = |source| Failure::Read { path: arguments.file.clone(), source };
    let mut file = File::open(&arguments.file).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let mut piece = vec![0; PIECE];
    let mut filled = file.read(&mut piece).await.map_err(failed)?;
    let format = arguments.format.map_or_else(|| detect(&piece[..filled]), DiskFormat::from);
    let stream = ImportSource::Stream { length };
    let mut exchange = peer.open(&request(format, stream)).await?;
    let mut bar = Bar::new(length, json);
    let mut left = length;
    while filled > 0 && left > 0 {
        // A file that grows meanwhile is read as long as it was.
        let part = filled.min(usize::try_from(left).unwrap_or(PIECE));
        if exchange.send_bytes(&piece[..part]).await.is_err() {
            // The service has said why, or is gone.
            break;
        }
        left -= part as u64;
        bar.show(length - left);
        filled = file.read(&mut piece).await.map_err(failed)?;
    }
    bar.end();
    if left > 0 && filled == 0 {
        let source = std::io::Error::other(format!("the file ended {left} bytes early"));
        return Err(failed(source));
    }
    finish(&mut exchange).await
}

async fn finish(exchange: &mut Exchange) -> Result<Answer, Failure> {
    let reply = tokio::time::timeout(FINISH_LIMIT, exchange.receive::<Reply>()).await;
    let reply = reply
        .unwrap_or(Err(plinth_client::CallError::Timeout { seconds: FINISH_LIMIT.as_secs() }))?;
    Ok(reply.result?)
}

/// What a file's first bytes say it is.
fn detect(start: &[u8]) -> DiskFormat {
    if start.starts_with(QCOW2_MAGIC) { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}

/// A bar on stderr, for people at a terminal only.
struct Bar {
    length: u64,
    shown: u64,
    is_shown: bool,
}

impl Bar {
    const WIDTH: u64 = 30;

    fn new(length: u64, json: bool) -> Self {
        let is_shown = !json && std::io::stderr().is_terminal();
        Self { length, shown: u64::MAX, is_shown }
    }

    fn show(&mut self, done: u64) {
        let percent = done.saturating_mul(100) / self.length.max(1);
        if !self.is_shown || percent == self.shown {
            return;
        }
        self.shown = percent;
        let full = usize::try_from(percent * Self::WIDTH / 100).unwrap_or(0);
        let empty = usize::try_from(Self::WIDTH).unwrap_or(0) - full;
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(empty));
        let _ = write!(std::io::stderr(), "\r[{bar}] {percent:3} % of {} ", Size(self.length));
    }

    fn end(&self) {
        if self.is_shown {
            let _ = writeln!(std::io::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qcow2_file_is_known_by_its_magic() {
        assert_eq!(detect(b"QFI\xfb\0\0\0\x03"), DiskFormat::Qcow2);
        assert_eq!(detect(b"QFI"), DiskFormat::Raw);
        assert_eq!(detect(b""), DiskFormat::Raw);
    }
}
