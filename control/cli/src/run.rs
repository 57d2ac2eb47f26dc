// SPDX-License-Identifier: Apache-2.0
//! From arguments to an exit code.

use crate::args::{Arguments, Deed};
use crate::failure::{Failure, exit};
use crate::{console, import, init, join, net, output};
use clap::CommandFactory;
use plinth_api::{Answer, NodeView, PoolCreate, Refusal, Reply, Request, SwitchTable};
use plinth_client::{Dialer, Identity, OperatorConfig, Peer, Role};
use plinth_ids::Name;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the service may take beyond what the request itself may wait.
const CALL_LIMIT: Duration = Duration::from_secs(180);
/// The same for what reads or writes a whole volume.
const LONG_LIMIT: Duration = Duration::from_secs(3700);

/// Does what the command line says; shows the answer on stdout or the error on stderr. Answers
/// the exit code.
pub fn run(arguments: Arguments) -> u8 {
    let json = arguments.json;
    match attempt(arguments) {
        Ok(text) => {
            // A reader that closed the pipe has seen enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            exit::DONE
        }
        Err(failure) => {
            let text = if json {
                output::json_error(&failure.refusal())
            } else {
                format!("plinth: {}\n", plinth_obs::Chain(&failure))
            };
            let _ = std::io::stderr().write_all(text.as_bytes());
            failure.exit_code()
        }
    }
}

fn attempt(arguments: Arguments) -> Result<String, Failure> {
    let Arguments { config_dir, service, json, verb } = arguments;
    let deed = match verb.deed() {
        Deed::Completion(shell) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "plinth", &mut text);
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        Deed::Init(arguments) => return Ok(init::init(&arguments, &config_dir, json)?),
        deed => deed,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    let result = runtime.block_on(async {
        if let Deed::Join(arguments) = deed {
            return Ok(join::join(&arguments, json).await?);
        }
        let config = OperatorConfig::load(&config_dir).map_err(Failure::NoConfig)?;
        let identity = Identity::load(&config_dir, "operator").map_err(Failure::NoIdentity)?;
        let address = service.unwrap_or(config.service);
        let peer = Dialer::new(&identity)?.connect(address, Role::Service.name()).await?;
        let result = carry_out(&peer, deed, json).await;
        peer.close();
        result
    });
    // The console leaves a thread behind that waits for a key.
    runtime.shutdown_background();
    result
}

async fn carry_out(peer: &Peer, deed: Deed, json: bool) -> Result<String, Failure> {
    let answer = match deed {
        Deed::Call(request) => call(peer, &request).await?,
        Deed::Import(arguments) => import::import(peer, &arguments, json).await?,
        Deed::PoolCreate(request, node) => {
            let node = the_node(peer, node).await?;
            call(peer, &Request::PoolCreate(PoolCreate { node, ..request })).await?
        }
        Deed::Switch(node, table) => switch(peer, node, table).await?,
        Deed::Net(node, deed) => {
            let node = the_node(peer, node).await?;
            return net::net(peer, node, deed, json).await;
        }
        Deed::Console(name) => {
            console::attach(peer, &name).await?;
            return Ok(String::new());
        }
        Deed::Init(_) | Deed::Join(_) | Deed::Completion(_) => return Err(Failure::Answer),
    };
    Ok(if json { output::json(&answer) } else { output::text(&answer, now()) })
}

async fn switch(peer: &Peer, node: Option<Name>, table: SwitchTable) -> Result<Answer, Failure> {
    let node = the_node(peer, node).await?;
    call(peer, &Request::Switch { node, table }).await
}

pub(crate) async fn call(peer: &Peer, request: &Request) -> Result<Answer, Failure> {
    let usual = if is_long(request) { LONG_LIMIT } else { CALL_LIMIT };
    let limit = usual + Duration::from_millis(wait_ms(request).into());
    let reply: Reply = peer.call(request, limit).await?;
    Ok(reply.result?)
}

/// Whether a node reads or writes a whole volume for it.
const fn is_long(request: &Request) -> bool {
    matches!(
        request,
        Request::DeltaExport(_) | Request::DeltaImport { .. } | Request::VolumeDiff { .. }
    )
}

fn wait_ms(request: &Request) -> u32 {
    match request {
        Request::VmStart { wait_ms, .. }
        | Request::VmStop { wait_ms, .. }
        | Request::VmDelete { wait_ms, .. } => *wait_ms,
        Request::VmCreate(request) => request.wait_ms,
        _ => 0,
    }
}

/// The node that was named, or the only one there is.
async fn the_node(peer: &Peer, named: Option<Name>) -> Result<Name, Failure> {
    if let Some(name) = named {
        return Ok(name);
    }
    let Answer::Nodes(nodes) = call(peer, &Request::NodeList).await? else {
        return Err(Failure::Answer);
    };
    only(&nodes).map_err(Failure::Refused)
}

fn only(nodes: &[NodeView]) -> Result<Name, Refusal> {
    let refuse = |text: String| {
        Refusal::new(plinth_api::Code::Invalid, text)
            .field("--node")
            .remedy("`plinth node list` shows what there is")
    };
    match nodes {
        [node] => Ok(node.name.clone()),
        [] => Err(refuse("there is no node".to_owned())),
        _ => Err(refuse(format!("there are {} nodes; say which", nodes.len()))),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
