// SPDX-License-Identifier: Apache-2.0
//! The line to one node's agent.

use crate::store::{Store, now};
use plinth_api::{
    AgentAnswer, AgentReply, AgentRequest, Code, NodeSpec, NodeStatus, Refusal, Run, VmState,
};
use plinth_client::{CallError, ConnectError, Dialer, Exchange, Peer, certificate_name};
use plinth_ids::{Epoch, NodeId};
use plinth_planner::{Act, Cluster, Key, Observed};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// While a VM is on its way from one state to another.
const PROBE_INTERVAL_BUSY: Duration = Duration::from_millis(100);
const STATUS_LIMIT: Duration = Duration::from_secs(4);
const APPLY_LIMIT: Duration = Duration::from_secs(30);
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// How long a node may be silent before it is called dead.
const PATIENCE_SECONDS: u64 = 5;
/// How long an act rests that its node could not carry out.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How many refusals are kept for those who were overtaken.
const REFUSED_MAX: usize = 64;

/// Keeps one agent in step with the records.
#[derive(Debug)]
pub struct Link {
    node: NodeId,
    store: Arc<Store>,
    dialer: Arc<Dialer>,
    peer: Mutex<Option<Peer>>,
    /// Held while an act is carried out: a node does one at a time, and each is read off the
    /// records under this lock, so that a late answer never meets a record that moved on.
    work: Mutex<()>,
    /// Why a node refused what it was given last for a key, for whoever asked for it and was
    /// overtaken by [`Link::run`]. Newer answers take the place of older ones.
    refused: Mutex<BTreeMap<Key, Refusal>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot connect")]
    Connect(#[from] ConnectError),
    #[error("the call failed")]
    Call(#[from] CallError),
    #[error("the node is not in the cluster")]
    Unknown,
    #[error("the agent gave another answer than was asked for")]
    Answer,
}

impl Link {
    pub(crate) fn new(node: NodeId, store: Arc<Store>, dialer: Arc<Dialer>) -> Arc<Self> {
        let (peer, work) = (Mutex::new(None), Mutex::new(()));
        let refused = Mutex::new(BTreeMap::new());
        Arc::new(Self { node, store, dialer, peer, work, refused })
    }

    /// Probes, pushes and works for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.keep_watch(), self.keep_working());
    }

    async fn keep_watch(&self) {
        let mut changed = self.store.watch();
        let mut pushed: Option<NodeSpec> = None;
        loop {
            changed.mark_unchanged();
            if let Err(err) = self.probe(&mut pushed).await {
                tracing::debug!(node = %self.node, err = %plinth_obs::Chain(&err), "probe failed");
                pushed = None;
                *self.peer.lock().await = None;
                let fault = plinth_obs::Chain(&err).to_string();
                self.store.missed(self.node, fault, PATIENCE_SECONDS).await;
            }
            self.judge_backends().await;
            let interval = if self.is_busy().await { PROBE_INTERVAL_BUSY } else { PROBE_INTERVAL };
            // A change is looked at at once, but no more often than a busy node is.
            tokio::time::sleep(PROBE_INTERVAL_BUSY).await;
            let rest = interval.saturating_sub(PROBE_INTERVAL_BUSY);
            let _ = tokio::time::timeout(rest, changed.changed()).await;
        }
    }

    /// Whether a VM of the node is not what is wanted, yet may soon be.
    async fn is_busy(&self) -> bool {
        let state = self.store.state().await;
        state.observed.is_alive(self.node)
            && is_settling(&state.cluster, &state.observed, self.node)
    }

    async fn probe(&self, pushed: &mut Option<NodeSpec>) -> Result<(), LinkError> {
        let status = self.status().await?;
        let epoch = status.epoch;
        self.store.saw(self.node, status).await;
        self.push(epoch, pushed).await?;
        let released =
            self.store.change(|cluster, observed| Ok(cluster.release(self.node, observed))).await;
        if let Err(refusal) = released {
            tracing::error!(node = %self.node, err = %refusal, "cannot forget deleted VMs");
        }
        Ok(())
    }

    /// Keeps what the node says of backends of load balancers, for the other nodes.
    async fn judge_backends(&self) {
        let plan = |cluster: &Cluster, observed: &Observed| {
            Ok(cluster.judge_backends(self.node, observed, now()))
        };
        if let Err(refusal) = self.store.change(plan).await {
            tracing::error!(node = %self.node, err = %refusal, "cannot keep which backends are fit");
        }
    }

    async fn status(&self) -> Result<NodeStatus, LinkError> {
        match self.call(&AgentRequest::Status, STATUS_LIMIT).await?.result {
            Ok(AgentAnswer::Status(status)) => Ok(status),
            Ok(_) | Err(_) => Err(LinkError::Answer),
        }
    }

    /// Pushes the spec where the agent's is another. `epoch` is that of the agent's.
    async fn push(
        &self,
        epoch: Option<Epoch>,
        pushed: &mut Option<NodeSpec>,
    ) -> Result<(), LinkError> {
        let (spec, wanted) = {
            let state = self.store.state().await;
            let spec = state.cluster.node_spec(self.node).ok_or(LinkError::Unknown)?;
            (spec, state.cluster.epoch_wanted(self.node))
        };
        let is_same = pushed.as_ref().is_some_and(|last| {
            Some(last.epoch) <= epoch && NodeSpec { epoch: last.epoch, ..spec.clone() } == *last
        });
        if is_same && epoch.is_some_and(|epoch| epoch.0 >= wanted) {
            return Ok(());
        }
        let reply = self.call(&AgentRequest::Apply(spec.clone()), APPLY_LIMIT).await?;
        match reply.result {
            Ok(_) => {
                tracing::info!(node = %self.node, epoch = %spec.epoch, "spec pushed");
                *pushed = Some(spec);
            }
            Err(refusal) => {
                tracing::error!(node = %self.node, epoch = %spec.epoch, err = %refusal, "spec refused");
            }
        }
        Ok(())
    }

    async fn keep_working(&self) {
        let mut changed = self.store.watch();
        loop {
            changed.mark_unchanged();
            let is_left = self.work_off().await;
            if is_left {
                tokio::time::sleep(RETRY_INTERVAL).await;
            } else if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Carries out what is due; answers whether something is left that could not be.
    async fn work_off(&self) -> bool {
        let acts = {
            let state = self.store.state().await;
            if !state.observed.is_alive(self.node) {
                // Its coming alive is a change.
                return false;
            }
            state.cluster.due(self.node)
        };
        let mut is_left = false;
        for act in acts {
            let guard = self.work.lock().await;
            let is_due = self.store.state().await.cluster.due(self.node).contains(&act);
            if is_due && let Err(refusal) = self.carry_out(&act).await {
                tracing::warn!(node = %self.node, key = %act.key, err = %refusal, "act failed");
                is_left = true;
            }
            drop(guard);
        }
        is_left
    }

    /// Plans a change that gives this node an act for `key`, commits it, and carries out the act
    /// before anything else. The refusal is the plan's or the node's.
    pub(crate) async fn change_and_act(
        &self,
        key: &Key,
        plan: impl FnOnce(&Cluster, &Observed) -> Result<plinth_planner::Change, Refusal>,
    ) -> Result<(), Refusal> {
        let _guard = self.work.lock().await;
        self.store
            .change(|cluster, observed| {
                let change = plan(cluster, observed)?;
                if observed.is_alive(self.node) {
                    return Ok(change);
                }
                let name = cluster.node_name(self.node);
                Err(Refusal::new(Code::Unreachable, format!("node {name} does not answer"))
                    .remedy(format!("see `plinth node show {name}`")))
            })
            .await?;
        self.act(key).await
    }

    /// Keeps acts from the node while the caller has it do something else.
    pub(crate) async fn hold(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.work.lock().await
    }

    /// Carries out what is due for a record that was just committed, or says what came of it
    /// where that was done meanwhile.
    pub(crate) async fn act_now(&self, key: &Key) -> Result<(), Refusal> {
        let _guard = self.work.lock().await;
        let acted = self.act(key).await;
        let told = self.refused.lock().await.remove(key);
        acted?;
        told.map_or(Ok(()), Err)
    }

    async fn act(&self, key: &Key) -> Result<(), Refusal> {
        let due = self.store.state().await.cluster.due(self.node);
        for act in due.iter().filter(|act| act.key == *key) {
            self.carry_out(act).await?;
        }
        Ok(())
    }

    async fn remember(&self, key: &Key, answer: &Result<AgentAnswer, Refusal>) {
        let mut refused = self.refused.lock().await;
        match answer {
            Ok(_) => refused.remove(key),
            Err(refusal) => refused.insert(key.clone(), refusal.clone()),
        };
        if refused.len() > REFUSED_MAX {
            refused.pop_first();
        }
    }

    /// Sends one act and settles its answer. The caller holds the work lock.
    async fn carry_out(&self, act: &Act) -> Result<(), Refusal> {
        if matches!(act.key, Key::Volume(_) | Key::Snapshot(..) | Key::Image(_)) {
            self.await_pools().await;
        }
        let request = AgentRequest::Perform(act.command.clone());
        let answer = match self.call(&request, ACT_LIMIT).await {
            Ok(reply) => reply.result,
            Err(err) => Err(self.unreachable(&act.key, &err).await),
        };
        self.remember(&act.key, &answer).await;
        self.store.change(|cluster, _| Ok(cluster.settle(act, &answer))).await?;
        answer.map(drop)
    }

    /// Gives the agent a moment to have a pool that was just made in its spec.
    pub(crate) async fn await_pools(&self) {
        let mut changed = self.store.watch();
        let wait = async {
            loop {
                {
                    let state = self.store.state().await;
                    let status = state.observed.status(self.node);
                    let is_served = state.cluster.pools_of(self.node).all(|pool| {
                        status.is_some_and(|status| {
                            status.pools.iter().any(|seen| seen.id == pool.id)
                        })
                    });
                    if is_served {
                        return;
                    }
                }
                let _ = tokio::time::timeout(PROBE_INTERVAL_BUSY, changed.changed()).await;
            }
        };
        let _ = tokio::time::timeout(STATUS_LIMIT, wait).await;
    }

    async fn unreachable(&self, key: &Key, err: &LinkError) -> Refusal {
        let name = self.store.state().await.cluster.node_name(self.node);
        let text = format!("node {name} did not answer: {}", plinth_obs::Chain(err));
        Refusal::new(Code::Unreachable, text)
            .remedy(format!("{key} is kept, and done when the node answers again"))
    }

    /// One request, one reply. A connection is made where there is none, and dropped when it
    /// fails.
    pub(crate) async fn call(
        &self,
        request: &AgentRequest,
        limit: Duration,
    ) -> Result<AgentReply, LinkError> {
        let peer = self.peer().await?;
        let result = peer.call(request, limit).await;
        if result.as_ref().is_err_and(CallError::is_connection) {
            self.drop_peer(&peer).await;
        }
        Ok(result?)
    }

    /// A request that carries bytes besides; the caller goes on with the exchange.
    pub(crate) async fn open(&self, request: &AgentRequest) -> Result<Exchange, LinkError> {
        Ok(self.peer().await?.open(request).await?)
    }

    async fn peer(&self) -> Result<Peer, LinkError> {
        let mut slot = self.peer.lock().await;
        if let Some(peer) = slot.as_ref().filter(|peer| !peer.is_closed()) {
            return Ok(peer.clone());
        }
        let (address, name) = {
            let state = self.store.state().await;
            let node = state.cluster.node(self.node).ok_or(LinkError::Unknown)?;
            (node.agent, certificate_name(&node.name))
        };
        let peer = self.dialer.connect(address, &name).await?;
        *slot = Some(peer.clone());
        Ok(peer)
    }

    async fn drop_peer(&self, failed: &Peer) {
        let mut slot = self.peer.lock().await;
        if slot.as_ref().is_some_and(|peer| peer.is_same(failed)) {
            *slot = None;
        }
    }
}

fn is_settling(cluster: &Cluster, observed: &Observed, node: NodeId) -> bool {
    let on_node = cluster.vms.values().filter(|vm| vm.node == node);
    let pending = cluster.pools_of(node).any(|pool| observed.pool(node, pool.id).is_none());
    pending
        || on_node.into_iter().any(|vm| {
            let seen = observed.vm(node, vm.id).map(|status| status.state);
            let has = |nic: &plinth_planner::Nic| {
                observed.vm(node, vm.id).is_some_and(|status| status.nics.contains(&nic.port))
            };
            if seen == Some(VmState::Running)
                && vm.nics.iter().any(|nic| nic.is_leaving || !has(nic))
            {
                return true;
            }
            match (vm.state, vm.run, seen) {
                (plinth_planner::State::Deleting, _, seen) => seen.is_some(),
                (_, Run::Running, Some(VmState::Running | VmState::Stopped | VmState::Failed)) => {
                    false
                }
                (_, Run::Stopped { .. }, Some(VmState::Stopped | VmState::Failed) | None) => false,
                (_, Run::Running | Run::Stopped { .. }, _) => true,
            }
        })
}
