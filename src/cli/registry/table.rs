//! Lists in the terminal.

use serde_json::Value;

/// A heading, and what stands below it.
pub(super) type Column = (&'static str, fn(&Value) -> String);

/// Entries in columns.
pub(super) fn table(items: &[Value], columns: &[Column]) -> String {
    let mut rows = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
    rows.extend(items.iter().map(|item| columns.iter().map(|(_, cell)| clean(&cell(item))).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A field as text; `-` where there is none.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// What somebody called an account must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up_and_nothing_steers_the_terminal() {
        let items = [json!({"a": "x\u{1b}[2J", "b": 1}), json!({"a": null, "b": ["p", "q"]})];
        let text = table(&items, &[("A", |item| cell(&item["a"])), ("B", |item| cell(&item["b"]))]);
        assert_eq!(
            text,
            "A       B\nx [2J  1\n-       p,q".replace("A       B", "A      B").replace("-       p", "-      p")
        );
    }
}
