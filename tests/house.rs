//! The floor plan: which part of the crate may use which.
//!
//! `docs/architecture.md` lists the floors. A file may use its own floor and those below it; files
//! that use each other in a circle cannot be read one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The floors as `docs/architecture.md` lists them, ground floor first.
fn floors() -> Vec<Vec<&'static str>> {
    let text = include_str!("../docs/architecture.md");
    let (_, text) = text.split_once("\n### The floors\n").expect("a section of that name");
    let (_, text) = text.split_once("\n```text\n").expect("a list in it");
    let (list, _) = text.split_once("\n```\n").expect("the list ends");
    list.lines().map(|line| line.split(' ').collect()).collect()
}

/// A source file of the crate.
struct Source {
    /// Its module path, such as `["reactor", "io"]`; `mod.rs` stands for its folder.
    module: Vec<String>,
    /// Its code, without comments, strings and unit tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    collect(Path::new("src"), &mut Vec::new(), &mut found);
    assert!(found.len() > 40, "only {} files", found.len());
    found
}

fn collect(folder: &Path, module: &mut Vec<String>, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("a readable folder").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("plain names").to_owned();
        if path.is_dir() {
            module.push(name);
            collect(&path, module, found);
            module.pop();
        } else if name != "lib" && path.extension().is_some_and(|extension| extension == "rs") {
            let mut module = module.clone();
            if name != "mod" {
                module.push(name);
            }
            let text = fs::read_to_string(&path).expect("readable");
            found.push(Source { module, code: code_of(&text) });
        }
    }
}

/// What the compiler sees in a build without tests.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut skipped: Option<&str> = None;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some(end) = skipped {
            if line.starts_with(end) && line[end.len()..].starts_with('}') {
                skipped = None;
            }
            continue;
        }
        if line.ends_with("mod tests {") {
            skipped = Some(indent);
            continue;
        }
        // A quotation mark in quotes begins no string.
        let line = line.replace("'\"'", "");
        let mut in_string = false;
        let bare: String = line
            .chars()
            .filter(|letter| {
                in_string ^= *letter == '"';
                !in_string
            })
            .collect();
        code.push_str(bare.split("//").next().unwrap_or(&bare));
        code.push('\n');
    }
    code
}

/// The module paths that a file names: `crate::a::b` and `super::c`, alone or in braces, in `use`
/// lines and anywhere else.
fn paths_in(source: &Source, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    let word = |letter: char| letter.is_alphanumeric() || letter == '_';
    for start in ["crate", "super", "self"] {
        for (at, _) in source.code.match_indices(&format!("{start}::")) {
            if source.code[..at].ends_with(|letter: char| word(letter) || letter == ':') {
                continue;
            }
            // An item before the file's own module: `super` in `reactor/io.rs` is `reactor`.
            let mut base = match start {
                "crate" => Vec::new(),
                "self" => source.module.clone(),
                _ => source.module[..source.module.len() - 1].to_vec(),
            };
            let mut rest = &source.code[at + start.len() + 2..];
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            for tail in tails_of(rest) {
                let mut path = base.clone();
                path.extend(tail);
                // What is named is the deepest module on that path.
                while !path.is_empty() && !modules.contains(&path) {
                    path.pop();
                }
                paths.insert(path);
            }
        }
    }
    paths
}

/// The paths that begin at the front of `text`: one, or those in braces.
fn tails_of(text: &str) -> Vec<Vec<String>> {
    let end = text.find(|letter: char| !(letter.is_alphanumeric() || "_:{}, \n*".contains(letter)));
    let mut tails = Vec::new();
    expand(&text[..end.unwrap_or(text.len())], &mut Vec::new(), &mut tails);
    tails
}

fn expand(text: &str, before: &mut Vec<String>, tails: &mut Vec<Vec<String>>) {
    let depth = before.len();
    let mut rest = text;
    loop {
        if let Some(list) = rest.strip_prefix('{') {
            let mut level = 0;
            let mut from = 0;
            for (at, letter) in list.char_indices() {
                match letter {
                    '{' => level += 1,
                    ',' | '}' if level == 0 => {
                        expand(list[from..at].trim(), before, tails);
                        from = at + 1;
                        if letter == '}' {
                            break;
                        }
                    }
                    '}' => level -= 1,
                    _ => {}
                }
            }
            break;
        }
        let end = rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        before.push(word.to_owned());
        match after.strip_prefix("::") {
            Some(after) => rest = after,
            None => {
                tails.push(before.clone());
                break;
            }
        }
    }
    before.truncate(depth);
}

/// Which module uses which, itself left out.
fn arrows() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let sources = sources();
    let modules: BTreeSet<_> = sources.iter().map(|source| source.module.clone()).collect();
    sources
        .iter()
        .map(|source| {
            let mut used = paths_in(source, &modules);
            used.remove(&source.module);
            (source.module.clone(), used)
        })
        .collect()
}

fn floor_of(module: &[String], floors: &[Vec<&str>]) -> usize {
    let floor = floors.iter().position(|floor| floor.contains(&module[0].as_str()));
    floor.unwrap_or_else(|| panic!("{module:?} stands on no floor"))
}

#[test]
fn every_floor_is_there() {
    let there: BTreeSet<_> = sources().into_iter().map(|source| source.module[0].clone()).collect();
    let named: BTreeSet<_> = floors().into_iter().flatten().map(str::to_owned).collect();
    assert_eq!(named, there);
}

#[test]
fn no_arrow_runs_up() {
    let floors = floors();
    let floor_of = |module: &[String]| floor_of(module, &floors);
    let mut wrong = Vec::new();
    for (from, used) in arrows() {
        for to in used {
            if to.is_empty() {
                wrong.push(format!("{} names what lib.rs exports", from.join("::")));
            } else if floor_of(&to) > floor_of(&from) {
                wrong.push(format!("{} uses {}", from.join("::"), to.join("::")));
            } else if to[0] != from[0] && floor_of(&to) == floor_of(&from) {
                wrong.push(format!("{} uses its neighbour {}", from.join("::"), to.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let arrows = arrows();
    // A folder's own file names its parts, and they it: that is a tree, not a circle.
    let kin = |a: &[String], b: &[String]| a.starts_with(b) || b.starts_with(a);
    let mut reach = BTreeMap::new();
    for from in arrows.keys() {
        let mut seen = BTreeSet::new();
        let mut next = vec![from];
        while let Some(at) = next.pop() {
            for to in arrows[at].iter().filter(|to| !to.is_empty() && !kin(at, to)) {
                if seen.insert(to) {
                    next.push(to);
                }
            }
        }
        reach.insert(from, seen);
    }
    let circular = |from: &Vec<String>, to: &Vec<String>| {
        arrows[from].contains(to) && !kin(from, to) && reach[to].contains(from)
    };
    let circles: Vec<_> = arrows
        .iter()
        .flat_map(|(from, used)| used.iter().map(move |to| (from, to)))
        .filter(|(from, to)| !to.is_empty() && circular(from, to))
        .map(|(from, to)| format!("{} uses {}", from.join("::"), to.join("::")))
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The core decides. What happens is logged, and bugs are planted, where it is carried out.
#[test]
fn the_core_neither_logs_nor_has_planted_bugs() {
    let mut wrong = Vec::new();
    for (from, used) in arrows() {
        let bad = |to: &&Vec<String>| ["log", "planted"].contains(&to[0].as_str());
        if from[0] == "core" {
            let used = used.iter().filter(|to| !to.is_empty()).filter(bad);
            wrong.extend(used.map(|to| format!("{} uses {}", from.join("::"), to.join("::"))));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
