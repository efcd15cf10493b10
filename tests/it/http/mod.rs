//! The front door over real sockets, with a gateway that answers by script behind it.

mod abuse;
mod access;
mod answers;
mod connections;
mod gateway;
mod wire;
