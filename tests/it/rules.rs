//! `tests/rules.md` names the test of every rule; here it is held to what there is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The places that the table names, `file: function` each.
fn named(table: &str) -> Vec<(String, String)> {
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| rule"));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
    let names = cells.flat_map(|(_, held_by)| held_by.split(", "));
    names
        .filter_map(|name| name.trim_matches('`').split_once(": "))
        .map(|(file, test)| (file.into(), test.into()))
        .collect()
}

#[test]
fn every_rule_has_the_test_that_is_named_for_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/rules.md")).unwrap();
    let named = named(&table);
    let rules = table.lines().filter(|line| line.starts_with("| ") && line.contains('`')).count();
    assert!(rules > 60 && named.len() > rules, "{rules} rules, {} tests: the table was not read", named.len());
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut missing = Vec::new();
    for (file, test) in &named {
        let text = files.entry(file).or_insert_with(|| fs::read_to_string(root.join(file)).unwrap_or_default());
        if !["fn ", "def "].iter().any(|keyword| text.contains(&format!("{keyword}{test}("))) {
            missing.push(format!("{file}: {test}"));
        }
    }
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}
