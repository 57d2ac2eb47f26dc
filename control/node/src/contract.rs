// SPDX-License-Identifier: Apache-2.0
//! The agent as the service calls it. What waits for a daemon or a disk runs on a thread that
//! may wait, and to its end even when the caller has gone.

use crate::NodeAgent;
use crate::agent::Inner;
use crate::console::Console;
use crate::perform::{Import, Scratch};
use plinth_api::{AgentAnswer, Code, Command, ImportSource, NodeSpec, NodeStatus, Refusal};
use plinth_client::{Agent, ByteStream};
use plinth_ids::{Epoch, VmId};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWriteExt};

impl Agent for NodeAgent {
    async fn apply(&self, spec: NodeSpec) -> Result<Epoch, Refusal> {
        waiting(&self.inner, move |inner| inner.take(spec)).await
    }

    async fn status(&self) -> NodeStatus {
        self.inner.look()
    }

    async fn perform(
        &self,
        command: Command,
        input: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<AgentAnswer, Refusal> {
        let Command::ImageImport { pool, volume, snapshot, name, format, source } = command else {
            return waiting(&self.inner, move |inner| inner.perform(command)).await;
        };
        let (source, spool) = match source {
            ImportSource::Path(path) => (path.into(), None),
            ImportSource::Stream { length } => {
                let file = format!("{volume}.incoming");
                let spool = Scratch::new(self.inner.config.places.imports().join(file));
                receive(input, length, &spool).await?;
                (spool.path().to_owned(), Some(spool))
            }
        };
        let import = Import { pool, volume, snapshot, name, format, source };
        waiting(&self.inner, move |inner| {
            let result = inner.import(&import);
            drop(spool);
            result
        })
        .await
    }

    async fn console(&self, vm: VmId) -> Result<Box<dyn ByteStream>, Refusal> {
        Ok(Box::new(Console::attach(Arc::clone(&self.inner), vm).await?))
    }
}

/// Runs `act` on a thread that may wait.
async fn waiting<T: Send + 'static>(
    inner: &Arc<Inner>,
    act: impl FnOnce(&Inner) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let inner = Arc::clone(inner);
    tokio::task::spawn_blocking(move || act(&inner))
        .await
        .unwrap_or_else(|error| Err(Refusal::new(Code::Failed, error.to_string())))
}

/// Writes an image that comes with the request to a file.
async fn receive(
    input: &mut (dyn AsyncRead + Send + Unpin),
    length: u64,
    spool: &Scratch,
) -> Result<(), Refusal> {
    let failed = |error: std::io::Error| {
        Refusal::new(Code::Failed, format!("the image cannot be taken in: {error}"))
            .remedy("make room in --state-dir")
    };
    let mut file = tokio::fs::File::create(spool.path()).await.map_err(failed)?;
    let received = tokio::io::copy(input, &mut file).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;
    if received != length {
        let text = format!("{received} of {length} bytes came before the end");
        return Err(Refusal::new(Code::Invalid, text).remedy("send the image again"));
    }
    Ok(())
}
