// SPDX-License-Identifier: Apache-2.0
//! Importing images: bytes go from the operator through the service to every node that has one
//! of the pools, all at once, at the pace of the slowest.

use crate::service::Shared;
use crate::store::now;
use plinth_api::{
    AgentAnswer, AgentReply, AgentRequest, Answer, Code, Command, ImageImport, ImportSource,
    Refusal,
};
use plinth_client::{CallError, Exchange};
use plinth_ids::{Name, NodeId};
use plinth_planner::{Cluster, Key};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How long a node may take to make a volume of the bytes it has.
const IMPORT_LIMIT: Duration = Duration::from_secs(3600);

/// How long an operator may send nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

const PIECE: usize = 256 * 1024;

pub(crate) async fn import(
    shared: &Shared,
    request: ImageImport,
    exchange: &mut Exchange,
) -> Result<Answer, Refusal> {
    let name = request.name.clone();
    shared.store.change(|cluster, _| cluster.image_import(&request, now())).await?;
    let result = carry(shared, &request, exchange).await;
    match &result {
        Ok(size) => {
            let (size, frozen) = (size.0, &size.1);
            let plan = |cluster: &Cluster, _: &plinth_planner::Observed| {
                Ok(cluster.image_imported(&name, size, frozen))
            };
            shared.store.change(plan).await?;
        }
        Err(refusal) => {
            tracing::warn!(image = %name, err = %refusal, "import failed");
            shared.store.change(|cluster, _| Ok(cluster.image_abandon(&name))).await?;
        }
    }
    result?;
    let state = shared.store.state().await;
    let image =
        state.cluster.images.get(&name).ok_or_else(|| {
            Refusal::new(Code::State, format!("image {name} was deleted meanwhile"))
        })?;
    Ok(Answer::Image(state.cluster.image_view(image)))
}

/// The nodes that are to make a copy, with the command for each.
fn commands(cluster: &Cluster, request: &ImageImport) -> Vec<(NodeId, Command)> {
    let Some(image) = cluster.images.get(&request.name) else { return Vec::new() };
    let command = |copy: &plinth_planner::Copy| {
        let node = cluster.pool(copy.pool)?.node;
        let command = Command::ImageImport {
            pool: copy.pool,
            volume: copy.volume,
            snapshot: copy.snapshot?,
            name: request.name.clone(),
            format: request.format,
            source: request.source.clone(),
        };
        Some((node, command))
    };
    image.copies.iter().filter_map(command).collect()
}

/// Makes every copy; answers the size of the disk, and for each copy whether it has a snapshot.
async fn carry(
    shared: &Shared,
    request: &ImageImport,
    exchange: &mut Exchange,
) -> Result<(u64, Vec<bool>), Refusal> {
    let commands = commands(&shared.store.state().await.cluster, request);
    let mut copies = Vec::new();
    for (node, command) in commands {
        let link = shared.link(node);
        let opened = link.open(&AgentRequest::Perform(command)).await;
        let node = shared.store.state().await.cluster.node_name(node);
        let copy = opened.map_err(|err| {
            let text = format!("node {node} did not answer: {}", plinth_obs::Chain(&err));
            Refusal::new(Code::Unreachable, text).remedy("import again when it does")
        })?;
        copies.push((node, copy));
    }
    if let ImportSource::Stream { length } = request.source {
        pass_on(exchange, length, &mut copies).await?;
    }
    let mut sizes = Vec::new();
    for (node, copy) in &mut copies {
        sizes.push(answer(node, copy).await?);
    }
    let (sizes, frozen): (Vec<u64>, Vec<bool>) = sizes.into_iter().unzip();
    match sizes.first() {
        Some(size) if sizes.iter().all(|other| other == size) => Ok((*size, frozen)),
        _ => Err(Refusal::new(Code::Failed, "the nodes read different sizes from the image")
            .remedy("give a file that is the same on every node")),
    }
}

async fn pass_on(
    exchange: &mut Exchange,
    length: u64,
    copies: &mut [(Name, Exchange)],
) -> Result<(), Refusal> {
    let mut left = length;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = exchange.input().read(&mut piece[..room]);
        let read = match tokio::time::timeout(SILENCE_LIMIT, read).await {
            Ok(Ok(read)) if read > 0 => read,
            _ => {
                let text = format!("the image ended {left} bytes early");
                return Err(Refusal::new(Code::Invalid, text).field("FILE"));
            }
        };
        for (node, copy) in &mut *copies {
            if copy.send_bytes(&piece[..read]).await.is_err() {
                // It has said why, or is gone.
                answer(node, copy).await?;
                let text = format!("node {node} stopped reading the image");
                return Err(Refusal::new(Code::Failed, text));
            }
        }
        left -= read as u64;
    }
    Ok(())
}

/// A node's answer to its import.
async fn answer(node: &Name, copy: &mut Exchange) -> Result<(u64, bool), Refusal> {
    let reply = tokio::time::timeout(IMPORT_LIMIT, copy.receive::<AgentReply>()).await;
    let failed = |err: CallError| {
        let text = format!("node {node} did not finish: {}", plinth_obs::Chain(&err));
        Refusal::new(Code::Unreachable, text).remedy("import again when it answers")
    };
    match reply {
        Ok(Ok(AgentReply { result: Ok(AgentAnswer::Imported { size, has_snapshot }) })) => {
            Ok((size, has_snapshot))
        }
        Ok(Ok(AgentReply { result: Ok(_) })) => {
            Err(Refusal::new(Code::Failed, format!("node {node} gave another answer")))
        }
        Ok(Ok(AgentReply { result: Err(refusal) })) => {
            let text = format!("node {node}: {}", refusal.text);
            Err(Refusal { text, ..refusal })
        }
        Ok(Err(err)) => Err(failed(err)),
        Err(_) => Err(failed(CallError::Timeout { seconds: IMPORT_LIMIT.as_secs() })),
    }
}

/// Deletes an image and its copies. Copies on nodes that do not answer go when they do.
pub(crate) async fn delete(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    shared.store.change(|cluster, _| cluster.image_delete(name)).await?;
    let nodes: Vec<NodeId> = {
        let state = shared.store.state().await;
        let copies = state.cluster.images.get(name).map(|image| image.copies.clone());
        let copies = copies.unwrap_or_default();
        copies.iter().filter_map(|copy| Some(state.cluster.pool(copy.pool)?.node)).collect()
    };
    for node in nodes {
        shared.link(node).act_now(&Key::Image(name.clone())).await?;
    }
    Ok(Answer::Done)
}
