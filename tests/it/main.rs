//! Integration tests: the library's parts over real sockets and real processes.

mod architecture;
mod claude_cli;
mod gateway;
