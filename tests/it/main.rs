//! Integration tests: the parts of `auth-pool` put together, over real sockets.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall say so and fail")]

mod http;
