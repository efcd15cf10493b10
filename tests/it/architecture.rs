//! Holds the map in `src/lib.rs`: who may import whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import, beside itself and `units`. Keep in step with the table in `src/lib.rs`.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("conversation", &[]),
    ("runtime", &[]),
    ("pool", &["conversation"]),
    ("shared", &["pool", "conversation", "runtime"]),
    ("simulator", &["pool", "conversation"]),
    ("backend", &["conversation", "runtime"]),
    ("gateway", &["pool", "shared", "backend", "conversation", "runtime"]),
    ("api", &["admin", "gateway", "pool", "backend", "conversation", "runtime"]),
    ("server", &["api", "admin", "gateway", "runtime"]),
    ("config", &["conversation", "runtime"]),
    ("standin", &["runtime"]),
    ("secrets", &[]),
    ("admin", &["config", "store", "secrets", "runtime"]),
    ("store", &["pool", "conversation", "runtime"]),
    ("alert", &["pool", "runtime"]),
    ("selftest", &["backend", "standin", "conversation", "runtime"]),
    ("doctor", &["app", "backend", "config", "selftest", "shared", "store", "runtime"]),
    (
        "app",
        &[
            "server",
            "api",
            "gateway",
            "pool",
            "shared",
            "backend",
            "conversation",
            "config",
            "alert",
            "standin",
            "admin",
            "secrets",
            "store",
            "selftest",
            "runtime",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "doctor",
            "server",
            "api",
            "gateway",
            "pool",
            "shared",
            "backend",
            "conversation",
            "config",
            "alert",
            "selftest",
            "standin",
            "admin",
            "secrets",
            "store",
            "simulator",
            "runtime",
        ],
    ),
];

#[test]
fn imports_point_down_only() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = BTreeSet::new();
    for file in rust_files(&src) {
        let room = room(&src, &file);
        if matches!(room.as_str(), "main" | "lib") {
            continue;
        }
        let Some(may) = allowed.get(room.as_str()) else {
            wrong.insert(format!("the room `{room}` is not in the table"));
            continue;
        };
        for imported in imports(&fs::read_to_string(&file).expect("a source file")) {
            if imported != room && imported != "units" && !may.contains(&imported.as_str()) {
                wrong.insert(format!("{}: `{room}` may not import `{imported}`", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_map_names_every_room() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(src.join("lib.rs")).expect("the map");
    for file in rust_files(&src) {
        let room = room(&src, &file);
        if room != "lib" {
            assert!(map.contains(&format!("| [`{room}`]")) || room == "main", "`{room}` is missing in src/lib.rs");
        }
    }
}

#[test]
fn no_file_is_too_long_to_be_read_in_one_go() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in rust_files(&src) {
        let lines = fs::read_to_string(&file).expect("a source file").lines().count();
        assert!(lines <= 600, "{} has {lines} lines", file.display());
    }
}

/// The first name of a path below `src`.
fn room(src: &Path, file: &Path) -> String {
    let first = file.strip_prefix(src).ok().and_then(|path| path.iter().next()).and_then(|name| name.to_str());
    first.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// The rooms that a file names by `crate::`; documentation links do not count.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
