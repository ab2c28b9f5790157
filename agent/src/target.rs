//! One traced process, as seen from outside: what it is, which interpreter it
//! runs and which connections it already has.

pub mod births;
pub mod elf;
pub mod greenlets;
pub mod interpreter;
pub mod placement;
pub mod process;
pub mod service;
pub mod sockets;
pub mod sqlite;
pub mod tls;
pub mod uvloop;
