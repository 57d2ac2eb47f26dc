// SPDX-License-Identifier: Apache-2.0
//! Records and observations, behind one lock, with one way to change each.

use plinth_api::{Code, NodeStatus, Refusal};
use plinth_ids::NodeId;
use plinth_planner::{Change, Cluster, Meta, Observed, Record, RecordError, Seen, Write};
use plinth_registry::{CommitError, Listing, Registry, Revision, StorageError, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Mutex, MutexGuard, watch};

/// Everything that the service knows.
#[derive(Debug)]
pub struct Store {
    registry: Arc<dyn Registry>,
    state: Mutex<State>,
    /// Counts changes of records and of what matters in observations.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cluster: Cluster,
    pub(crate) observed: Observed,
    /// The revision of each key, to be compared when it is written.
    revisions: BTreeMap<String, Revision>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot read the registry")]
    Read(#[source] StorageError),
    #[error("the registry has a record that this program cannot use")]
    Record(#[from] RecordError),
    #[error("cannot write the registry")]
    Write(#[source] CommitError),
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Store {
    /// Reads every record; makes the cluster's own where the registry is empty.
    pub fn load(registry: Arc<dyn Registry>, fresh: Meta) -> Result<Self, StoreError> {
        if registry.get("meta").map_err(StoreError::Read)?.is_none() {
            let record = Record::Meta(fresh);
            let first =
                Transaction::default().compare("meta", Revision(0)).put("meta", record.emit());
            registry.commit(first).map_err(StoreError::Write)?;
        }
        let listing = registry.list("").map_err(StoreError::Read)?;
        let state = read(listing)?;
        Ok(Self { registry, state: Mutex::new(state), changed: watch::Sender::new(0) })
    }

    pub(crate) async fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().await
    }

    /// A wake-up at each change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Plans against the records as they are, commits the change, and takes it over. When it
    /// returns `Ok` the change is durable; when it returns `Err` nothing is changed.
    pub(crate) async fn transact<T>(
        &self,
        plan: impl FnOnce(&Cluster, &Observed) -> Result<(T, Change), Refusal>,
    ) -> Result<T, Refusal> {
        let mut state = self.state.lock().await;
        let (value, change) = plan(&state.cluster, &state.observed)?;
        if change.is_empty() {
            return Ok(value);
        }
        let transaction = state.transaction(&change);
        let registry = Arc::clone(&self.registry);
        // The commit waits for the disk; other tasks go on meanwhile.
        let committed = tokio::task::spawn_blocking(move || registry.commit(transaction)).await;
        let revision = match committed {
            Ok(Ok(revision)) => revision,
            Ok(Err(err)) => return Err(self.refuse(&mut state, err)),
            Err(err) => {
                return Err(Refusal::new(Code::Failed, format!("the registry stopped: {err}")));
            }
        };
        state.take(change, revision);
        drop(state);
        self.notify();
        Ok(value)
    }

    /// As [`Self::transact`], for a plan that has nothing to say but its change.
    pub(crate) async fn change(
        &self,
        plan: impl FnOnce(&Cluster, &Observed) -> Result<Change, Refusal>,
    ) -> Result<(), Refusal> {
        self.transact(|cluster, observed| Ok(((), plan(cluster, observed)?))).await
    }

    fn refuse(&self, state: &mut State, err: CommitError) -> Refusal {
        tracing::error!(err = %plinth_obs::Chain(&err), "registry commit failed");
        if matches!(err, CommitError::Conflict { .. })
            && let Ok(listing) = self.registry.list("")
            && let Ok(fresh) = read(listing)
        {
            // Somebody else wrote: what is in memory is old.
            state.cluster = fresh.cluster;
            state.revisions = fresh.revisions;
            return Refusal::new(Code::Failed, "the registry was changed by another program")
                .remedy("try again");
        }
        Refusal::new(Code::Failed, format!("the registry failed: {}", plinth_obs::Chain(&err)))
            .remedy("nothing was changed; look at the disk of the state folder")
    }

    /// What a node said just now.
    pub(crate) async fn saw(&self, node: NodeId, status: NodeStatus) {
        let mut state = self.state.lock().await;
        let seen = Seen { is_alive: true, at: Some(now()), status: Some(status), fault: None };
        let before = state.observed.nodes.insert(node, seen);
        let after = state.observed.nodes.get(&node);
        let is_news = match (&before, after) {
            (Some(before), Some(after)) => !before.is_alive || matters(before) != matters(after),
            _ => true,
        };
        drop(state);
        if is_news {
            self.notify();
        }
    }

    /// A node did not answer. It is dead when it has not for `patience_seconds`.
    pub(crate) async fn missed(&self, node: NodeId, fault: String, patience_seconds: u64) {
        let mut state = self.state.lock().await;
        let seen = state.observed.nodes.entry(node).or_default();
        let was_alive = seen.is_alive;
        seen.fault = Some(fault);
        let is_overdue = seen.at.is_none_or(|at| at + patience_seconds <= now());
        seen.is_alive = was_alive && !is_overdue;
        let is_news = was_alive && !seen.is_alive;
        drop(state);
        if is_news {
            self.notify();
        }
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// The part of a status that someone may wait for; load and byte counts are not.
fn matters(seen: &Seen) -> Option<impl PartialEq + use<'_>> {
    let status = seen.status.as_ref()?;
    Some((status.epoch, &status.vms, &status.daemons))
}

fn read(listing: Listing) -> Result<State, StoreError> {
    let mut cluster = Cluster::new(Meta::new(String::new()));
    let mut revisions = BTreeMap::new();
    let mut change = Change::default();
    for entry in listing.entries {
        change = change.put(Record::parse(&entry.key, &entry.value)?);
        revisions.insert(entry.key, entry.revision);
    }
    cluster.apply(change, listing.revision.0);
    Ok(State { cluster, observed: Observed::default(), revisions })
}

impl State {
    fn transaction(&self, change: &Change) -> Transaction {
        let mut transaction = Transaction::default();
        for write in &change.writes {
            let key = write.key().to_string();
            let revision = self.revisions.get(&key).copied().unwrap_or_default();
            transaction = transaction.compare(key.clone(), revision);
            transaction = match write {
                Write::Put(record) => transaction.put(key, record.emit()),
                Write::Delete(_) => transaction.delete(key),
            };
        }
        transaction
    }

    fn take(&mut self, change: Change, revision: Revision) {
        for write in &change.writes {
            let key = write.key().to_string();
            match write {
                Write::Put(_) => self.revisions.insert(key, revision),
                Write::Delete(_) => self.revisions.remove(&key),
            };
        }
        self.cluster.apply(change, revision.0);
        for fault in self.cluster.check() {
            tracing::error!(fault, "the records contradict each other; report this");
        }
    }
}
