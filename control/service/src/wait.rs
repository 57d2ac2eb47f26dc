// SPDX-License-Identifier: Apache-2.0
//! Waiting until what is seen is what was asked for.

use crate::store::{State, Store};
use plinth_api::{Code, Refusal, Run, VmState};
use plinth_ids::Name;
use plinth_planner::{State as ResourceState, VmRecord};
use std::time::Duration;

/// The longest that a request may wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Waits until `done` has an answer, at most `wait_ms`. Zero does not wait at all, and answers
/// `Ok`.
pub(crate) async fn until(
    store: &Store,
    wait_ms: u32,
    what: impl Fn(&State) -> String,
    done: impl Fn(&State) -> Option<Result<(), Refusal>>,
) -> Result<(), Refusal> {
    if wait_ms == 0 {
        return Ok(());
    }
    let limit = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
    let mut changed = store.watch();
    let watch = async {
        loop {
            changed.mark_unchanged();
            if let Some(result) = done(&*store.state().await) {
                return result;
            }
            if changed.changed().await.is_err() {
                return Err(Refusal::new(Code::Failed, "the service stops"));
            }
        }
    };
    match tokio::time::timeout(limit, watch).await {
        Ok(result) => result,
        Err(_) => {
            let text = format!("{} after {} s", what(&*store.state().await), limit.as_secs_f32());
            Err(Refusal::new(Code::Timeout, text)
                .remedy("it goes on by itself; give a longer --wait to see it through"))
        }
    }
}

/// Waits until a VM runs. A failure is told as soon as it is seen.
pub(crate) async fn until_running(store: &Store, name: &Name, wait_ms: u32) -> Result<(), Refusal> {
    let what = |state: &State| format!("VM {name} is {}", seen_word(state, name));
    until(store, wait_ms, what, |state| {
        let Some(vm) = state.cluster.vms.get(name) else { return Some(Err(gone(name))) };
        if matches!(vm.run, Run::Stopped { .. }) {
            let text = format!("VM {name} was stopped meanwhile");
            return Some(Err(Refusal::new(Code::State, text)));
        }
        let status = state.observed.vm(vm.node, vm.id)?;
        if status.start_number < vm.start_number {
            return None;
        }
        match status.state {
            VmState::Running => Some(Ok(())),
            VmState::Failed => {
                let text = format!("VM {name} does not start: {}", status.reason);
                let remedy = format!("`plinth vm console {name}` shows its last words");
                Some(Err(Refusal::new(Code::Failed, text).remedy(remedy)))
            }
            VmState::Starting | VmState::Stopping | VmState::Stopped => None,
        }
    })
    .await
}

/// Waits until a VM is off.
pub(crate) async fn until_stopped(store: &Store, name: &Name, wait_ms: u32) -> Result<(), Refusal> {
    let what = |state: &State| format!("VM {name} is {}", seen_word(state, name));
    until(store, wait_ms, what, |state| {
        let Some(vm) = state.cluster.vms.get(name) else { return Some(Ok(())) };
        if vm.run == Run::Running {
            let text = format!("VM {name} was started meanwhile");
            return Some(Err(Refusal::new(Code::State, text)));
        }
        is_off(state, vm).then_some(Ok(()))
    })
    .await
}

fn is_off(state: &State, vm: &VmRecord) -> bool {
    let Some(status) = state.observed.status(vm.node) else { return false };
    let has_spec = status.epoch.is_some_and(|epoch| epoch > vm.changed_after);
    let seen = state.observed.vm(vm.node, vm.id).map(|status| status.state);
    // A VM that was never started may have no status, once its node knows of it.
    matches!(seen, Some(VmState::Stopped | VmState::Failed))
        || (seen.is_none() && has_spec && vm.state == ResourceState::Ready)
}

/// Waits until a VM is deleted, its system disk too.
pub(crate) async fn until_deleted(store: &Store, name: &Name, wait_ms: u32) -> Result<(), Refusal> {
    let what = |_: &State| format!("VM {name} is still being deleted");
    let system: Option<Name> = format!("{name}-system").parse().ok();
    until(store, wait_ms, what, |state| {
        let volume = system.as_ref().and_then(|system| state.cluster.volumes.get(system));
        let is_doomed = volume.is_some_and(|volume| volume.state == ResourceState::Deleting);
        (!state.cluster.vms.contains_key(name) && !is_doomed).then_some(Ok(()))
    })
    .await
}

fn gone(name: &Name) -> Refusal {
    Refusal::new(Code::NotFound, format!("VM {name} is gone"))
        .remedy("its system disk could not be made, or it was deleted meanwhile")
}

fn seen_word(state: &State, name: &Name) -> &'static str {
    let seen = state.cluster.vms.get(name).and_then(|vm| state.observed.vm(vm.node, vm.id));
    match seen.map(|status| status.state) {
        None => "not known to its node",
        Some(VmState::Starting) => "still starting",
        Some(VmState::Running) => "still running",
        Some(VmState::Stopping) => "still stopping",
        Some(VmState::Stopped) => "still off",
        Some(VmState::Failed) => "failed",
    }
}
