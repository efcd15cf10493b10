//! What a check of an answer may take at most.
//!
//! A schema can look at the same value in many ways (`anyOf`, `allOf`, ...), each way can do so again, and references
//! can repeat that without end: a few lines of schema can keep a processor busy for years. So what a check can take is
//! reckoned before it is begun.

use std::collections::HashMap;

use serde_json::Value;

/// Keywords whose schemas look at the very value that their own schema looks at.
const IN_PLACE_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const IN_PLACE: [&str; 4] = ["not", "if", "then", "else"];
const IN_PLACE_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// Keywords whose schemas look at the values inside; of each keyword at most one schema looks at the same one, but for
/// `patternProperties`.
const INSIDE: [&str; 8] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "contentSchema",
];
const INSIDE_LISTS: [&str; 2] = ["prefixItems", "items"];

/// The most steps from schema to schema at one and the same value. Each takes room on the stack, and so does each level
/// of the answer.
const LONGEST_CHAIN: usize = 16;
/// The deepest answer that is checked.
pub(super) const DEEPEST: usize = 64;

/// Whether checking one value can lead back to checking the same value against the same schema, or takes so many steps
/// that it might as well.
pub(super) fn refers_to_itself_in_place(schema: &Value) -> bool {
    let mut known = HashMap::new();
    !every(schema)
        .into_iter()
        .all(|node| chain(node, schema, 0, &mut known).is_some_and(|steps| steps <= LONGEST_CHAIN))
}

/// The longest chain of steps that begins at `node`; `None` where it has no end. `known` holds `None` for those on the
/// way here.
fn chain(node: &Value, root: &Value, steps: usize, known: &mut HashMap<*const Value, Option<usize>>) -> Option<usize> {
    let this = std::ptr::from_ref(node);
    if let Some(longest) = known.get(&this) {
        return *longest;
    }
    if steps > LONGEST_CHAIN {
        return None;
    }
    known.insert(this, None);
    let mut longest = 0;
    for next in in_place(node, root) {
        longest = longest.max(chain(next, root, steps + 1, known)? + 1);
    }
    known.insert(this, Some(longest));
    Some(longest)
}

/// The most visits that one value of an answer can get, among all values at most `depth` levels inside it.
pub(super) fn visits(schema: &Value, depth: usize) -> u64 {
    let mut known = HashMap::new();
    (0..=depth).map(|depth| visits_at(schema, schema, depth, &mut known)).max().unwrap_or(0)
}

/// Visits of one value exactly `depth` levels inside the one that `node` looks at.
fn visits_at<'a>(
    node: &'a Value,
    root: &'a Value,
    depth: usize,
    known: &mut HashMap<(*const Value, usize), u64>,
) -> u64 {
    let key = (std::ptr::from_ref(node), depth);
    if let Some(count) = known.get(&key) {
        return *count;
    }
    let mut count = u64::from(depth == 0);
    for next in in_place(node, root) {
        count = count.saturating_add(visits_at(next, root, depth, known));
    }
    if depth > 0 {
        let mut most = |schemas: Vec<&'a Value>, known: &mut _| {
            let most = schemas.into_iter().map(|next| visits_at(next, root, depth - 1, known)).max();
            count = count.saturating_add(most.unwrap_or(0));
        };
        most(members(node, "properties").collect(), known);
        for keyword in INSIDE {
            most(node.get(keyword).into_iter().collect(), known);
        }
        for keyword in INSIDE_LISTS {
            most(items(node, keyword).collect(), known);
        }
        for pattern in members(node, "patternProperties") {
            most(vec![pattern], known);
        }
    }
    known.insert(key, count);
    count
}

/// Values in an answer, and how deep the deepest is.
pub(super) fn extent(value: &Value) -> (u64, usize) {
    let inside: Vec<(u64, usize)> = match value {
        Value::Array(items) => items.iter().map(extent).collect(),
        Value::Object(members) => members.values().map(extent).collect(),
        _ => return (1, 0),
    };
    let values = inside.iter().map(|(values, _)| values).sum::<u64>();
    (values + 1, inside.iter().map(|(_, depth)| depth + 1).max().unwrap_or(0))
}

fn in_place<'a>(node: &'a Value, root: &'a Value) -> Vec<&'a Value> {
    let mut next: Vec<&Value> =
        REFERENCES.iter().filter_map(|keyword| root.pointer(node.get(keyword)?.as_str()?.strip_prefix('#')?)).collect();
    next.extend(IN_PLACE_LISTS.iter().flat_map(|keyword| items(node, keyword)));
    next.extend(IN_PLACE.iter().filter_map(|keyword| node.get(keyword)));
    next.extend(IN_PLACE_MAPS.iter().flat_map(|keyword| members(node, keyword)));
    next
}

/// How many values a schema holds.
pub(super) fn values(schema: &Value) -> usize {
    every(schema).len()
}

/// Every value of the schema, schemas or not.
fn every(value: &Value) -> Vec<&Value> {
    let mut all = vec![value];
    let mut next = 0;
    while let Some(value) = all.get(next).copied() {
        next += 1;
        match value {
            Value::Array(items) => all.extend(items),
            Value::Object(members) => all.extend(members.values()),
            _ => {}
        }
    }
    all
}

fn items<'a>(node: &'a Value, keyword: &str) -> impl Iterator<Item = &'a Value> {
    node.get(keyword).and_then(Value::as_array).into_iter().flatten()
}

fn members<'a>(node: &'a Value, keyword: &str) -> impl Iterator<Item = &'a Value> {
    node.get(keyword).and_then(Value::as_object).into_iter().flatten().map(|(_, schema)| schema)
}
