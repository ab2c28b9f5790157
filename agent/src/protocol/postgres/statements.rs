//! The statements that a connection has prepared, and the portals that are
//! bound to them: a bounded number, the oldest go first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::ending::Columns;
use crate::protocol::sql::Statement;

/// Statements and portals remembered per connection. Drivers keep about 100
/// statements at a time.
const MAX_NAMES: usize = 256;
/// Longest name; PostgreSQL cuts names at 63 bytes.
const MAX_NAME: usize = 128;

/// A statement that was prepared.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) statement: Arc<Statement>,
    pub(super) columns: Columns,
}

/// What a connection has prepared.
#[derive(Debug, Default)]
pub(super) struct Statements {
    prepared: Names<Prepared>,
    portals: Names<Option<Arc<Statement>>>,
}

impl Statements {
    pub(super) fn prepare(&mut self, name: &[u8], statement: &Arc<Statement>) {
        let prepared = Prepared {
            statement: Arc::clone(statement),
            columns: Columns::Unknown,
        };
        self.prepared.insert(name, prepared);
    }

    /// The server has described the columns of a statement's rows.
    pub(super) fn describe(&mut self, name: &[u8], columns: Columns) {
        if let Some(prepared) = self.prepared.known.get_mut(name) {
            prepared.columns = columns;
        }
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<Prepared> {
        self.prepared.known.get(name).cloned()
    }

    pub(super) fn forget(&mut self, name: &[u8]) {
        self.prepared.remove(name);
    }

    pub(super) fn bind(&mut self, portal: &[u8], statement: Option<Arc<Statement>>) {
        self.portals.insert(portal, statement);
    }

    pub(super) fn portal(&self, name: &[u8]) -> Option<Arc<Statement>> {
        self.portals.known.get(name).cloned().flatten()
    }

    pub(super) fn unbind(&mut self, portal: &[u8]) {
        self.portals.remove(portal);
    }
}

/// Things by name, the oldest first.
#[derive(Debug)]
struct Names<T> {
    known: HashMap<Vec<u8>, T>,
    order: VecDeque<Vec<u8>>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<T> Names<T> {
    fn insert(&mut self, name: &[u8], thing: T) {
        if name.len() > MAX_NAME {
            return;
        }
        if self.known.insert(name.to_vec(), thing).is_some() {
            return;
        }
        self.order.push_back(name.to_vec());
        if self.order.len() > MAX_NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn remove(&mut self, name: &[u8]) {
        if self.known.remove(name).is_some() {
            self.order.retain(|known| known != name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_statement_goes_first() {
        let mut statements = Statements::default();
        let statement = Arc::new(Statement::default());
        for number in 0..=MAX_NAMES {
            statements.prepare(number.to_string().as_bytes(), &statement);
        }
        assert!(statements.get(b"0").is_none() && statements.get(b"1").is_some());
        statements.forget(b"1");
        assert!(statements.get(b"1").is_none());
        assert_eq!(statements.prepared.order.len(), MAX_NAMES - 1);
        statements.prepare(&[b'x'; 1000], &statement);
        assert_eq!(statements.prepared.order.len(), MAX_NAMES - 1);
    }
}
