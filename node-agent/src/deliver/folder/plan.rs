//! What is done to a folder, in which order. Pure.
//!
//! - *links first*: they lead nowhere until the rename, and then all at once.
//! - *ours alone*: only folders that are called like versions are removed, and only links that lead to `..data`.

use std::collections::BTreeMap;

use crate::deliver::render::{Rendered, RenderedFile};

/// The link that says which version it is.
pub(super) const DATA: &str = "..data";
/// The same on its way to its place.
pub(super) const POINTER: &str = "..data.new";
/// What the name of a version ends with while its files are written.
pub(super) const PARTIAL: &str = ".partial";

/// What is in the folder, by name.
pub(super) type Seen = BTreeMap<String, Found>;

/// What something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A symbolic link, and where it leads.
    Link(String),
    /// A folder.
    Folder,
    /// Anything else.
    Other,
}

/// One thing to do.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// Make a folder.
    Make(String),
    /// Write a file into a folder, and flush it.
    Write(String, &'a RenderedFile),
    /// Flush a folder and give it its name.
    Finish(String, String),
    /// Make the link of a file.
    Link(&'a str),
    /// Make the link to a version, beside its place, and flush.
    Point(String),
    /// Put it in its place, and flush.
    Swap,
    /// Remove a link.
    Unlink(String),
    /// Remove a folder and what is in it.
    Forget(String),
}

/// What clears away what an earlier end has left half done.
pub(super) fn clear(seen: &Seen) -> Vec<Step<'static>> {
    let left_over = |(name, found): (&String, &Found)| match found {
        Found::Folder if is_version(name) && name.ends_with(PARTIAL) => Some(Step::Forget(name.clone())),
        Found::Link(_) if name == POINTER => Some(Step::Unlink(name.clone())),
        _ => None,
    };
    seen.iter().filter_map(left_over).collect()
}

/// What puts `rendered` in the place of what is there. An error is the name of a file whose place is taken.
pub(super) fn swap<'a>(seen: &Seen, rendered: &'a Rendered) -> Result<Vec<Step<'a>>, String> {
    let mut steps = clear(seen);
    let name = free_name(seen, &rendered.version);
    let partial = format!("{name}{PARTIAL}");
    let mut links = Vec::new();
    for file in &rendered.files {
        match seen.get(&file.name) {
            None => links.push(Step::Link(&file.name)),
            Some(found) if is_link_of(&file.name, found) => {}
            Some(_) => return Err(file.name.clone()),
        }
    }
    if seen.get(DATA).is_some_and(|found| !matches!(found, Found::Link(_))) {
        return Err(DATA.into());
    }
    steps.push(Step::Make(partial.clone()));
    steps.extend(rendered.files.iter().map(|file| Step::Write(partial.clone(), file)));
    steps.push(Step::Finish(partial, name.clone()));
    steps.extend(links);
    steps.push(Step::Point(name));
    steps.push(Step::Swap);
    let has = |name: &str| rendered.files.iter().any(|file| file.name == name);
    let stale = seen.iter().filter(|(name, found)| is_link_of(name, found) && !has(name));
    steps.extend(stale.map(|(name, _)| Step::Unlink(name.clone())));
    let before = current(seen);
    let older = seen.iter().filter(|(name, found)| {
        **found == Found::Folder && is_version(name) && !name.ends_with(PARTIAL) && Some(name.as_str()) != before
    });
    steps.extend(older.map(|(name, _)| Step::Forget(name.clone())));
    Ok(steps)
}

/// The folder of the present version.
fn current(seen: &Seen) -> Option<&str> {
    match seen.get(DATA) {
        Some(Found::Link(target)) => Some(target),
        _ => None,
    }
}

/// A name for a version that no folder has: the same version may be there, from before this process was started.
fn free_name(seen: &Seen, version: &str) -> String {
    let plain = format!("..{version}");
    let others = (2_u32..).map(|number| format!("..{version}.{number}"));
    // The names have no end: one of them is free.
    std::iter::once(plain.clone()).chain(others).find(|name| !seen.contains_key(name)).unwrap_or(plain)
}

/// Whether it is our link for the file `name`.
fn is_link_of(name: &str, found: &Found) -> bool {
    matches!(found, Found::Link(target) if target.strip_prefix(DATA).and_then(|rest| rest.strip_prefix('/')) == Some(name))
}

/// Whether a folder is called as those of versions are: `..`, sixteen hexadecimal digits, and what may follow them.
fn is_version(name: &str) -> bool {
    let Some(digits) = name.strip_prefix("..").and_then(|rest| rest.get(..16)) else { return false };
    let rest = name[2 + digits.len()..].trim_end_matches(PARTIAL);
    let is_numbered = |rest: &str| rest.strip_prefix('.').is_some_and(|number| number.parse::<u32>().is_ok());
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && (rest.is_empty() || is_numbered(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_as_a_version_is_one() {
        for name in
            ["..0123456789abcdef", "..0123456789abcdef.2", "..0123456789abcdef.partial", "..0123456789abcdef.3.partial"]
        {
            assert!(is_version(name), "{name}");
        }
        for name in
            ["..data", "..2026_11_21_06_00_00.123", "0123456789abcdef", "..0123456789abcdef.x", "..0123456789abcde"]
        {
            assert!(!is_version(name), "{name}");
        }
    }
}
