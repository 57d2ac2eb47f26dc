// SPDX-License-Identifier: Apache-2.0
//! The operators' port.

use crate::service::Shared;
use crate::{answer, image};
use plinth_api::{AgentReply, AgentRequest, Answer, Code, Refusal, Reply, Request};
use plinth_client::{CallError, Exchange, Listener, Session};
use plinth_ids::Name;
use std::sync::Arc;

pub(crate) async fn serve(listener: Listener, shared: Arc<Shared>) {
    while let Some(session) = listener.accept().await {
        tokio::spawn(serve_session(session, Arc::clone(&shared)));
    }
}

async fn serve_session(session: Session, shared: Arc<Shared>) {
    while let Some(exchange) = session.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Err(err) = serve_request(exchange, shared).await {
                tracing::debug!(err = %plinth_obs::Chain(&err), "request ended early");
            }
        });
    }
}

async fn serve_request(mut exchange: Exchange, shared: Arc<Shared>) -> Result<(), CallError> {
    let result = match exchange.receive::<Request>().await? {
        Request::ImageImport(request) => image::import(&shared, request, &mut exchange).await,
        Request::VmConsole(name) => match open_console(&shared, &name).await {
            Ok(agent) => {
                exchange.send(&Reply { result: Ok(Answer::Done) }).await?;
                return exchange.join_with(agent.into_stream()).await;
            }
            Err(refusal) => Err(refusal),
        },
        request => {
            // In a task of its own: an operator who hangs up does not stop it half-way.
            let task = tokio::spawn(async move { answer::answer(&shared, request).await });
            task.await.unwrap_or_else(|err| {
                Err(Refusal::new(Code::Failed, format!("the request was not finished: {err}")))
            })
        }
    };
    exchange.send(&Reply { result }).await?;
    exchange.finish().await
}

/// The console of a VM, attached at its node.
async fn open_console(shared: &Shared, name: &Name) -> Result<Exchange, Refusal> {
    let (vm, node) = {
        let state = shared.store.state().await;
        let vm = answer::find(&state.cluster.vms, "vm", name)?;
        (vm.id, vm.node)
    };
    let opened = async {
        let mut exchange = shared.link(node).open(&AgentRequest::Console(vm)).await?;
        let reply: AgentReply = exchange.receive().await?;
        Ok::<_, crate::link::LinkError>((exchange, reply))
    };
    let (exchange, reply) = opened.await.map_err(|err| {
        let text = format!("the VM's node did not answer: {}", plinth_obs::Chain(&err));
        Refusal::new(Code::Unreachable, text)
    })?;
    reply.result.map(|_| exchange)
}
