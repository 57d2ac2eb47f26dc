// SPDX-License-Identifier: Apache-2.0
//! Rules about one file's lines.

use super::File;

/// A file longer than this is two rooms without a wall.
const LINES_MAX: usize = 900;

const SPDX: &str = "SPDX-License-Identifier: Apache-2.0";

/// Hosts of package registries: where packages come from is the machine's business. Written in
/// halves so that this file does not break its own rule.
const REGISTRIES: &[&str] = &[
    concat!("crates", ".io"),
    concat!("py", "pi.org"),
    concat!("npm", "js.org"),
    concat!("npm", "js.com"),
    concat!("deb.debian", ".org"),
    concat!("proxy.golang", ".org"),
];

/// Marks of unfinished work, in halves for the same reason.
const MARKS: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// Files that other programs write, or whose text is a licence.
fn is_foreign(path: &str) -> bool {
    path == "Cargo.lock"
        || path == "LICENSE"
        || path.contains("/corpus/")
        || path.contains("/golden/")
}

pub(super) fn complaints(file: &File) -> Vec<String> {
    if is_foreign(&file.path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let path = &file.path;
    let is_source = [".rs", ".c", ".h", ".sh"].iter().any(|end| path.ends_with(end));
    let is_script = file.text.starts_with("#!");
    if (is_source || is_script) && !file.text.lines().take(2).any(|line| line.contains(SPDX)) {
        found.push(format!("{path}:1: the first line is not `{SPDX}`"));
    }
    let length = file.text.lines().count();
    if path.ends_with(".rs") && length > LINES_MAX {
        found.push(format!("{path}: {length} lines; split it, {LINES_MAX} is the bound"));
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        found.push(format!("{path}:{length}: the last line has no end"));
    }
    for (index, line) in file.text.lines().enumerate() {
        found
            .extend(line_complaint(path, line).map(|what| format!("{path}:{}: {what}", index + 1)));
    }
    found
}

fn line_complaint(path: &str, line: &str) -> Option<String> {
    if line.ends_with([' ', '\t', '\r']) {
        return Some("space at the end of the line".to_owned());
    }
    if let Some(host) = REGISTRIES.iter().find(|host| line.contains(**host)) {
        return Some(format!("names the registry {host}; leave registries to the machine"));
    }
    if let Some(mark) = unnumbered_mark(line) {
        return Some(format!("`{mark}` without an issue; write `{}(#n)`", MARKS[0]));
    }
    let trimmed = line.trim_start();
    if path.ends_with(".rs") && trimmed == concat!("#[ig", "nore]") {
        return Some(format!("an ignored test says why: `{} = \"…\"]`", concat!("#[ig", "nore")));
    }
    None
}

/// A mark counts as a word of its own, so that neither a placeholder like `0xXXXX` nor a name
/// trips the rule. `TODO(#12)`, with a number, is the one that may stand.
fn unnumbered_mark(line: &str) -> Option<&'static str> {
    let is_word = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    for mark in MARKS {
        for (at, _) in line.match_indices(mark) {
            let before = at.checked_sub(1).map(|index| line.as_bytes()[index]);
            let rest = &line[at + mark.len()..];
            if is_word(before) || is_word(rest.bytes().next()) {
                continue;
            }
            let number = rest.strip_prefix("(#").and_then(|rest| rest.split_once(')'));
            let is_numbered =
                number.is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            if !(is_numbered && *mark == MARKS[0]) {
                return Some(mark);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> Vec<String> {
        complaints(&File { path: path.to_owned(), text: text.to_owned() })
    }

    fn rust(body: &str) -> Vec<String> {
        of("base/a/src/lib.rs", &format!("// {SPDX}\n{body}\n"))
    }

    #[test]
    fn a_clean_file_has_no_complaint() {
        assert_eq!(rust("fn main() {}"), Vec::<String>::new());
    }

    #[test]
    fn a_source_without_licence_line_is_named() {
        assert_eq!(of("a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(of("run", "#!/bin/sh\ntrue\n").len(), 1);
        assert_eq!(of("run", &format!("#!/bin/sh\n# {SPDX}\n")), Vec::<String>::new());
    }

    #[test]
    fn space_at_the_end_is_named_with_its_line() {
        assert_eq!(rust("fn a() {} "), ["base/a/src/lib.rs:2: space at the end of the line"]);
    }

    #[test]
    fn a_mark_needs_the_number_of_an_issue() {
        for bad in ["TO_DO later", "TO_DO(me)", "TO_DO(#)", "FIX_ME(#3)", "x XX_X y"] {
            let text = bad.replace('_', "");
            assert_eq!(rust(&format!("// {text}")).len(), 1, "{text}");
        }
        for good in ["TO_DO(#3): later", "0xXX_XX", "AUTO_TO_DOS"] {
            let text = good.replace('_', "");
            assert_eq!(rust(&format!("// {text}")), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn an_ignored_test_says_why() {
        assert_eq!(rust(concat!("#[ig", "nore]")).len(), 1);
        assert_eq!(rust(concat!("#[ig", "nore = \"needs root\"]")), Vec::<String>::new());
    }

    #[test]
    fn registries_are_not_named() {
        assert_eq!(rust(concat!("// https://crates", ".io/x")).len(), 1);
    }

    #[test]
    fn a_file_past_the_bound_is_named_once() {
        let long = "//\n".repeat(LINES_MAX);
        assert_eq!(rust(&long).iter().filter(|text| text.contains("bound")).count(), 1);
    }
}
