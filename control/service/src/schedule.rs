// SPDX-License-Identifier: Apache-2.0
//! The clock of scheduled snapshots.
//!
//! Nothing is remembered here: each round asks the planner what the records need at this time,
//! so that a restart, a late round or a clock that was set is nothing special.

use crate::service::Shared;
use crate::store::now;
use std::sync::Arc;
use std::time::Duration;

/// The longest rest: a clock that is set is seen after this.
const REST_MAX: u64 = 60;
/// After a commit that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Rounds for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut changed = shared.store.watch();
    loop {
        changed.mark_unchanged();
        let plan =
            shared.store.change(|cluster, observed| Ok(cluster.schedules_due(now(), observed)));
        if let Err(err) = plan.await {
            tracing::error!(err = %err, "scheduled snapshots wait");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let next = shared.store.state().await.cluster.schedule_next(now());
        let rest = next.map_or(REST_MAX, |next| next.saturating_sub(now()).clamp(1, REST_MAX));
        // A change may be a schedule, or a snapshot that is one too many.
        let _ = tokio::time::timeout(Duration::from_secs(rest), changed.changed()).await;
    }
}
