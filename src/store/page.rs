//! Lists in pages, and who may see what.

use serde::Serialize;

use super::Result;
use super::sql::{Row, Sql};

/// Which part of a list is asked for. Lists begin with the newest entry, and entries that come meanwhile move nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The most entries; at least 1, at most [`Page::LARGEST`].
    pub limit: u32,
    /// The page begins behind the entry with this id: [`Paged::next`] of the page before.
    pub after: Option<String>,
}

impl Page {
    /// The most entries of one page.
    pub const LARGEST: u32 = 1000;
}

impl Default for Page {
    /// The first 50.
    fn default() -> Self {
        Self { limit: 50, after: None }
    }
}

/// A page.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Paged<T> {
    /// The entries, the newest first.
    pub items: Vec<T>,
    /// What to ask for as [`Page::after`] to read on; `None` on the last page.
    pub next: Option<String>,
}

/// An entry of a list.
pub(super) trait Item {
    fn id(&self) -> &str;
}

impl Page {
    fn size(&self) -> u32 {
        self.limit.clamp(1, Self::LARGEST)
    }
}

/// The statement that reads a page and one entry more. `sql` ends within its conditions.
pub(super) fn of(mut sql: Sql, page: &Page) -> Sql {
    sql.filter("id <", page.after.as_deref());
    sql.push(" ORDER BY id DESC LIMIT ").bind(i64::from(page.size()) + 1);
    sql
}

/// A page, from one entry more than it has, if there are so many.
pub(super) fn paged<T: Item>(rows: &[Row], page: &Page, read: impl Fn(&Row) -> Result<T>) -> Result<Paged<T>> {
    let mut items = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
    let limit = page.size() as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| last.id().to_owned());
    Ok(Paged { items, next })
}

/// Whose entries are meant. Entries outside of it are not there: not in lists, not by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's: the operator.
    #[default]
    Everything,
    /// Those of one organisation.
    Organization(String),
}

impl Scope {
    /// The organisation, if there is only one.
    pub fn organization(&self) -> Option<&str> {
        match self {
            Self::Everything => None,
            Self::Organization(id) => Some(id),
        }
    }
}
