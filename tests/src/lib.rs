//! Shared by the live and replay tests.
