//! Tests over the whole pool.
