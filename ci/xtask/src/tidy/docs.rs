// SPDX-License-Identifier: Apache-2.0
//! Rules about documents: links and code paths lead somewhere.

use super::File;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Folders whose paths in backticks are promises that the thing exists.
const ROOTS: &[&str] = &[
    "base/",
    "dataplane/",
    "storage-engine/",
    "hypervisor-glue/",
    "control/",
    "perf/",
    "ci/",
    "docs/",
];

pub(super) fn complaints(file: &File, paths: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        if is_code {
            continue;
        }
        let place = format!("{}:{}", file.path, index + 1);
        for link in links(line) {
            if !leads_somewhere(&file.path, link, paths) {
                found.push(format!("{place}: the link to {link} leads nowhere"));
            }
        }
        for path in code_paths(line) {
            if !paths.contains(path.trim_end_matches('/')) {
                found.push(format!("{place}: there is no {path}"));
            }
        }
    }
    found
}

/// The targets of `[text](target)` that are paths.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        let is_path =
            !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
        is_path.then_some(target)
    })
}

fn leads_somewhere(from: &str, link: &str, paths: &BTreeSet<String>) -> bool {
    let folder = Path::new(from).parent().unwrap_or_else(|| Path::new(""));
    let mut resolved = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::ParentDir => {
                if !resolved.pop() {
                    return false;
                }
            }
            Component::Normal(name) => resolved.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    paths.contains(&resolved.display().to_string())
}

/// Paths of the tree that stand in backticks, without those that have blanks to fill in and
/// those that name a function or line inside a file.
fn code_paths(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|text| {
        let is_ours = ROOTS.iter().any(|root| text.starts_with(root));
        is_ours && !text.contains(['<', '*', '{', '…', ' ', ':', '$', '='])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        let paths = ["docs", "docs/perf.md", "docs/adr/0001-a.md", "ci/xtask", "README.md"];
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        complaints(&File { path: "docs/README.md".to_owned(), text: text.to_owned() }, &paths)
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let text =
            "[a](perf.md) [b](../README.md#limits) [c](https://x.y/z) [d](#here) `ci/xtask/`";
        assert_eq!(of(text), Vec::<String>::new());
    }

    #[test]
    fn a_dead_link_is_named_with_its_line() {
        assert_eq!(of("\n[a](gone.md)"), ["docs/README.md:2: the link to gone.md leads nowhere"]);
        assert_eq!(of("[a](../../up.md)").len(), 1);
    }

    #[test]
    fn a_code_path_that_is_not_there_is_named() {
        assert_eq!(of("see `ci/gone/x.rs`"), ["docs/README.md:1: there is no ci/gone/x.rs"]);
        assert_eq!(of("see `ci/<name>` and `ci/xtask`"), Vec::<String>::new());
    }

    #[test]
    fn blocks_of_code_are_not_read() {
        assert_eq!(of("```\n[a](gone.md)\n```"), Vec::<String>::new());
    }
}
