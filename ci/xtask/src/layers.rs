// SPDX-License-Identifier: Apache-2.0
//! Which crate may use which: the table of kinds and the walls between areas.
//!
//! A crate says its kind in `[package.metadata.plinth]`; its area is the top-level folder it
//! lives in. What `cargo metadata` reports is held to three tables below. Dev-dependencies are
//! judged by area and by "nobody uses a program" only: a test of a pure crate may stand on the
//! fake disk of a driver.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Ground,
    Format,
    Pure,
    Fence,
    Driver,
    Program,
}

impl Kind {
    /// The kinds that a crate of this kind may use inside the project.
    const fn may_use(self) -> &'static [Self] {
        match self {
            Self::Ground => &[],
            Self::Format => &[Self::Ground],
            Self::Pure => &[Self::Ground, Self::Format, Self::Pure],
            Self::Fence => &[Self::Ground, Self::Fence],
            Self::Driver | Self::Program => {
                &[Self::Ground, Self::Format, Self::Pure, Self::Fence, Self::Driver]
            }
        }
    }

    /// Whether the crate decides and must not touch the world.
    pub(crate) const fn is_worldless(self) -> bool {
        matches!(self, Self::Ground | Self::Format | Self::Pure)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Ground => "ground",
            Self::Format => "format",
            Self::Pure => "pure",
            Self::Fence => "fence",
            Self::Driver => "driver",
            Self::Program => "program",
        })
    }
}

/// Areas whose crates any crate of the area on the left may use, besides its own.
///
/// hypervisor-glue is open to both data areas and to control because joining them to QEMU is
/// what it is for.
const AREAS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("hypervisor-glue", &["base"]),
    ("dataplane", &["base", "hypervisor-glue"]),
    ("storage-engine", &["base", "hypervisor-glue"]),
    ("control", &["base", "hypervisor-glue"]),
    ("perf", &["base"]),
    ("ci", &["base"]),
];

/// Format crates that are made to be spoken across areas.
const SPOKEN: &[&str] = &["plinth-switch-api", "plinth-store-api"];

/// Areas that never meet, not even in a program of one of them.
const APART: [&str; 2] = ["dataplane", "storage-engine"];

/// Crates from outside that neither do I/O nor read clocks, fit for ground, format and pure. Of
/// `hickory-proto` that holds for reading and writing messages, which is all that it is here for; of
/// `smoltcp` without its devices, which are features that nobody has.
const OUTSIDE_WORLDLESS: &[&str] = &[
    "bytemuck",
    "crc-fast",
    "dhcproto",
    "hickory-proto",
    "ipnet",
    "rkyv",
    "serde",
    "serde_json",
    "smoltcp",
    "thiserror",
];

#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    metadata: Option<Table>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// Absent for ordinary ones, else `dev` or `build`.
    kind: Option<String>,
    /// Present for crates of the workspace.
    path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Table {
    plinth: Option<Plinth>,
}

#[derive(Debug, Deserialize)]
struct Plinth {
    kind: Kind,
}

impl Package {
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.metadata.as_ref()?.plinth.as_ref().map(|plinth| plinth.kind)
    }

    /// The folder of the manifest, relative to the workspace's root, with `/` between names.
    pub(crate) fn folder(&self, metadata: &Metadata) -> String {
        let folder = self.manifest_path.parent().unwrap_or(&self.manifest_path);
        let inside = folder.strip_prefix(&metadata.workspace_root).unwrap_or(folder);
        inside.to_string_lossy().into_owned()
    }

    fn area(&self, metadata: &Metadata) -> String {
        self.folder(metadata).split('/').next().unwrap_or_default().to_owned()
    }
}

/// What cargo knows of the workspace's own crates.
pub(crate) fn metadata() -> Result<Metadata> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(shell::root())
        .output()
        .context("cargo could not be started")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout)
        .context("a crate's metadata is not understood; is its kind one of the six?")
}

pub(crate) fn run() -> Result<()> {
    let metadata = metadata()?;
    let violations = violations(&metadata);
    for violation in &violations {
        println!("layers: {violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations of the layer table (docs/architecture.md)", violations.len());
    }
    println!("== layers: {} crates keep to their kinds and areas", metadata.packages.len());
    Ok(())
}

/// Every sentence names the crate, what it does wrong, and the rule.
fn violations(metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.name.as_str(), package)).collect();
    for package in &metadata.packages {
        let Some(kind) = package.kind() else {
            let name = &package.name;
            found.push(format!(
                "{name} has no kind; add `kind = \"…\"` under [package.metadata.plinth]"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let is_dev = dependency.kind.as_deref() == Some("dev");
            if dependency.path.is_none() {
                found.extend(judge_outside(package, kind, dependency, is_dev));
            } else if let Some(target) = packages.get(dependency.name.as_str()) {
                found.extend(judge_kind(package, kind, target, is_dev));
                found.extend(judge_area(metadata, package, kind, target, is_dev));
            }
        }
    }
    found
}

fn judge_outside(
    package: &Package,
    kind: Kind,
    dependency: &Dependency,
    is_dev: bool,
) -> Option<String> {
    let is_fine = is_dev || !kind.is_worldless() || OUTSIDE_WORLDLESS.contains(&&*dependency.name);
    (!is_fine).then(|| {
        format!(
            "{} is {kind} and uses {} from outside, which is not on the list of crates without \
             I/O, clock or thread (OUTSIDE_WORLDLESS in ci/xtask/src/layers.rs)",
            package.name, dependency.name
        )
    })
}

fn judge_kind(package: &Package, kind: Kind, target: &Package, is_dev: bool) -> Option<String> {
    // A target without kind has its own violation.
    let target_kind = target.kind()?;
    let is_fine =
        if is_dev { target_kind != Kind::Program } else { kind.may_use().contains(&target_kind) };
    if is_fine {
        return None;
    }
    let (name, other) = (&package.name, &target.name);
    Some(match (kind, target_kind) {
        (Kind::Pure, Kind::Fence) | (Kind::Fence, Kind::Pure) => format!(
            "{name} is {kind} and uses {other}, which is {target_kind}: pure and fence never \
             meet, a driver joins them"
        ),
        (_, Kind::Program) => format!("{name} uses {other}, a program: nobody uses a program"),
        _ => format!(
            "{name} is {kind} and uses {other}, which is {target_kind}; {kind} may use: {}",
            kind.may_use().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    })
}

fn judge_area(
    metadata: &Metadata,
    package: &Package,
    kind: Kind,
    target: &Package,
    is_dev: bool,
) -> Option<String> {
    let (from, to) = (package.area(metadata), target.area(metadata));
    let (name, other) = (&package.name, &target.name);
    if from == to {
        return None;
    }
    if APART.contains(&&*from) && APART.contains(&&*to) {
        return Some(format!("{name} uses {other}: {from} and {to} never import each other"));
    }
    let Some((_, open)) = AREAS.iter().find(|(area, _)| *area == from) else {
        return Some(format!(
            "{name} lies in {from}/, which is no area; known areas are the top-level folders in \
             AREAS (ci/xtask/src/layers.rs)"
        ));
    };
    let is_spoken = SPOKEN.contains(&&**other) && matches!(&*from, "control" | "ci" | "perf");
    let is_fine = open.contains(&&*to) || is_spoken || kind == Kind::Program;
    // Tools may lean on the product, the product never on its tools; only its tests do.
    let leans_on_tools = matches!(&*to, "ci" | "perf") && !matches!(&*from, "ci" | "perf");
    let is_tool = matches!(&*from, "ci" | "perf");
    if leans_on_tools && is_dev {
        return None;
    }
    if leans_on_tools {
        return Some(format!("{name} uses {other}: {from} must not lean on the tools in {to}"));
    }
    (!is_fine && !is_tool).then(|| {
        format!(
            "{name} ({from}, {kind}) uses {other} ({to}): only programs join areas, and format \
             crates made for it: {}",
            SPOKEN.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(folder: &str, kind: Kind, uses: &[&str]) -> Package {
        let name = |folder: &str| format!("plinth-{}", folder.rsplit('/').next().unwrap());
        let dependency = |text: &&str| {
            let (kind, folder) = match text.split_once(' ') {
                Some((kind, folder)) => (Some(kind.to_owned()), folder),
                None => (None, *text),
            };
            let path = folder.contains('/').then(|| PathBuf::from("/w").join(folder));
            let name = if path.is_some() { name(folder) } else { folder.to_owned() };
            Dependency { name, kind, path }
        };
        Package {
            name: name(folder),
            manifest_path: format!("/w/{folder}/Cargo.toml").into(),
            dependencies: uses.iter().map(dependency).collect(),
            metadata: Some(Table { plinth: Some(Plinth { kind }) }),
        }
    }

    fn judge(packages: Vec<Package>) -> Vec<String> {
        violations(&Metadata { packages, workspace_root: "/w".into() })
    }

    #[test]
    fn the_plan_keeps_to_its_own_table() {
        let found = judge(vec![
            package("base/ids", Kind::Ground, &["thiserror"]),
            package("base/rt", Kind::Fence, &["base/ids", "libc"]),
            package("dataplane/switch-api", Kind::Format, &["base/ids", "serde"]),
            package("dataplane/vswitch", Kind::Pure, &["base/ids", "dev dataplane/ports"]),
            package("dataplane/ports", Kind::Driver, &["dataplane/vswitch", "hypervisor-glue/v"]),
            package("hypervisor-glue/v", Kind::Fence, &["base/ids"]),
            package("control/node", Kind::Driver, &["dataplane/switch-api", "hypervisor-glue/v"]),
            package("ci/stage", Kind::Driver, &["dataplane/switch-api", "hypervisor-glue/v"]),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn pure_and_fence_never_meet() {
        let found = judge(vec![
            package("base/rt", Kind::Fence, &[]),
            package("dataplane/vswitch", Kind::Pure, &["base/rt"]),
            package("dataplane/dpdk", Kind::Fence, &["dataplane/vswitch"]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|text| text.contains("pure and fence never meet")), "{found:?}");
    }

    #[test]
    fn tests_may_use_the_tools_and_the_product_may_not() {
        let tools = || package("perf/frontend", Kind::Driver, &[]);
        let tests = package("dataplane/switchd", Kind::Program, &["dev perf/frontend"]);
        assert_eq!(judge(vec![tools(), tests]), Vec::<String>::new());
        let product = package("dataplane/switchd", Kind::Program, &["perf/frontend"]);
        assert_eq!(judge(vec![tools(), product]).len(), 1);
    }

    #[test]
    fn the_two_data_areas_never_meet_even_in_a_program() {
        let found = judge(vec![
            package("dataplane/wire", Kind::Format, &[]),
            package("storage-engine/stored", Kind::Program, &["dataplane/wire"]),
        ]);
        assert_eq!(
            found,
            [
                "plinth-stored uses plinth-wire: storage-engine and dataplane never import each other"
            ]
        );
    }

    #[test]
    fn a_driver_joins_no_areas_but_a_program_does() {
        let found = judge(vec![
            package("storage-engine/store", Kind::Pure, &[]),
            package("control/node", Kind::Driver, &["storage-engine/store"]),
            package("control/service", Kind::Program, &["storage-engine/store"]),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("plinth-node (control, driver)"), "{found:?}");
    }

    #[test]
    fn nobody_uses_a_program_not_even_a_test() {
        let found = judge(vec![
            package("control/cli", Kind::Program, &[]),
            package("control/service", Kind::Program, &["dev control/cli"]),
        ]);
        assert_eq!(found, ["plinth-service uses plinth-cli, a program: nobody uses a program"]);
    }

    #[test]
    fn worldless_crates_take_nothing_from_outside_that_touches_the_world() {
        let found = judge(vec![
            package("dataplane/vswitch", Kind::Pure, &["tokio"]),
            package("dataplane/wire", Kind::Format, &["dev proptest", "bytemuck"]),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("uses tokio from outside"), "{found:?}");
    }

    #[test]
    fn a_crate_without_kind_and_one_outside_all_areas_are_named() {
        let mut nameless = package("base/ring", Kind::Fence, &[]);
        nameless.metadata = None;
        let found = judge(vec![
            nameless,
            package("base/ids", Kind::Ground, &[]),
            package("attic/old", Kind::Driver, &["base/ids"]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("plinth-ring has no kind"), "{found:?}");
        assert!(found[1].contains("attic/, which is no area"), "{found:?}");
    }

    #[test]
    fn the_product_does_not_lean_on_its_tools() {
        let found = judge(vec![
            package("ci/stage", Kind::Driver, &[]),
            package("control/service", Kind::Program, &["ci/stage"]),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
