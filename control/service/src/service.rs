// SPDX-License-Identifier: Apache-2.0
//! The service as a whole: its parts, and how they start.

use crate::link::Link;
use crate::store::{Store, StoreError, now};
use crate::{api, join, schedule};
use plinth_api::{Refusal, Underlay};
use plinth_client::{
    CaError, ClusterCa, ConnectError, Dialer, Identity, ListenError, Listener, Role,
};
use plinth_ids::{Name, NodeId};
use plinth_planner::{Key, Meta};
use plinth_registry::Registry;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What a service is made with.
#[derive(Debug)]
pub struct ServiceOptions {
    pub cluster: String,
    pub vcpus_per_cpu: u32,
    pub listen: SocketAddr,
    pub join: SocketAddr,
    /// The node that the cluster was made on, which needs no token.
    pub first_node: Option<FirstNode>,
}

#[derive(Debug)]
pub struct FirstNode {
    pub name: Name,
    pub agent: SocketAddr,
    pub underlay: Option<Underlay>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the control service has no usable identity")]
    Identity(#[from] plinth_client::IdentityError),
    #[error("the control service cannot sign certificates")]
    Ca(#[from] CaError),
    #[error("the control service cannot make connections")]
    Dial(#[from] ConnectError),
    #[error("the control service cannot listen")]
    Listen(#[from] ListenError),
    #[error("the control service has no records")]
    Store(#[from] StoreError),
    #[error("the first node cannot be added")]
    FirstNode(#[source] Refusal),
}

/// A running control service. It stops when this is dropped.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    address: SocketAddr,
    join_address: SocketAddr,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What every task of the service has in hand.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) ca: ClusterCa,
    dialer: Arc<Dialer>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
}

impl Service {
    /// Starts with the identity `service` and the CA in `tls`.
    pub async fn start(
        options: ServiceOptions,
        tls: &Path,
        registry: Arc<dyn Registry>,
    ) -> Result<Self, StartError> {
        let identity = Identity::load(tls, "service")?;
        let fresh =
            Meta { vcpus_per_cpu: options.vcpus_per_cpu, ..Meta::new(options.cluster.clone()) };
        let shared = Arc::new(Shared {
            store: Arc::new(Store::load(registry, fresh)?),
            ca: ClusterCa::load(tls)?,
            dialer: Arc::new(Dialer::new(&identity)?),
            links: Mutex::new(BTreeMap::new()),
        });
        shared.prepare(options.first_node, options.vcpus_per_cpu).await?;
        let api_listener = Listener::bind(options.listen, &identity, Role::Operator)?;
        let join_listener = Listener::bind_join(options.join, &identity)?;
        let address = api_listener.address().unwrap_or(options.listen);
        let join_address = join_listener.address().unwrap_or(options.join);
        let tasks = vec![
            tokio::spawn(keep_links(Arc::clone(&shared))),
            tokio::spawn(api::serve(api_listener, Arc::clone(&shared))),
            tokio::spawn(schedule::keep(Arc::clone(&shared))),
            tokio::spawn(join::serve(join_listener, Arc::clone(&shared))),
        ];
        Ok(Self { shared, address, join_address, tasks })
    }

    /// Where operators call.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where joining nodes call.
    pub const fn join_address(&self) -> SocketAddr {
        self.join_address
    }

    /// The records as they are, for tests.
    pub async fn cluster(&self) -> plinth_planner::Cluster {
        self.shared.store.state().await.cluster.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    /// What must be true before anybody calls: the first node is there, settings are those of
    /// the configuration, and imports that a kill cut off are given up.
    async fn prepare(
        &self,
        first: Option<FirstNode>,
        vcpus_per_cpu: u32,
    ) -> Result<(), StartError> {
        let prepared = self.store.change(|cluster, _| {
            let mut change = cluster.interrupted_imports();
            if let Some(first) = first
                && !cluster.nodes.contains_key(&first.name)
            {
                let (_, added) =
                    cluster.node_add(first.name, first.agent, first.underlay, now())?;
                change.writes.extend(added.writes);
            } else if cluster.meta.vcpus_per_cpu != vcpus_per_cpu {
                let meta = Meta { vcpus_per_cpu, ..cluster.meta.clone() };
                change = change.put(plinth_planner::Record::Meta(meta));
            }
            Ok(change)
        });
        prepared.await.map_err(StartError::FirstNode)
    }

    /// The line to a node; made when it is first asked for.
    pub(crate) fn link(&self, node: NodeId) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links
            .entry(node)
            .or_insert_with(|| Link::new(node, Arc::clone(&self.store), Arc::clone(&self.dialer)));
        Arc::clone(link)
    }

    /// Where the acts of a record go: the node of its pool.
    pub(crate) async fn link_of(&self, key: &Key) -> Option<Arc<Link>> {
        let state = self.store.state().await;
        let cluster = &state.cluster;
        let pool = match key {
            Key::Pool(name) => cluster.pools.get(name)?,
            Key::Snapshot(name, _) | Key::Volume(name) => {
                cluster.pool(cluster.volumes.get(name)?.pool)?
            }
            _ => return None,
        };
        Some(self.link(pool.node))
    }
}

/// Runs a link for every node that is or comes.
async fn keep_links(shared: Arc<Shared>) {
    let mut changed = shared.store.watch();
    let mut running = BTreeMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let nodes: Vec<NodeId> =
            shared.store.state().await.cluster.nodes.values().map(|node| node.id).collect();
        for node in nodes {
            running.entry(node).or_insert_with(|| {
                tasks.spawn(shared.link(node).run());
            });
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}
