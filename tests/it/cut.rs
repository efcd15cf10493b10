//! A line between a program and a server that a test can cut and mend.

use std::net::SocketAddr;

use auth_pool::runtime::tasks::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Listens on a port of its own and passes on what comes. While it is cut nothing comes through, in either direction, and
/// nobody hangs up: as when a network is divided. What was on its way arrives when it is mended.
pub(super) struct Line {
    port: u16,
    open: watch::Sender<bool>,
}

impl Line {
    /// To a port of this machine.
    pub(super) async fn to(port: u16, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Self { port: listener.local_addr().unwrap().port(), open: watch::channel(true).0 };
        let (open, inner) = (line.open.subscribe(), tasks.clone());
        tasks.spawn("line", async move {
            while let Ok((near, _)) = listener.accept().await {
                inner.spawn("line", connect(near, SocketAddr::from(([127, 0, 0, 1], port)), open.clone()));
            }
        });
        line
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(super) fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn connect(near: TcpStream, far: SocketAddr, mut open: watch::Receiver<bool>) {
    if open.wait_for(|open| *open).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(far).await else { return };
    let (near, far) = (near.into_split(), far.into_split());
    // Whichever side ends, both connections end with it.
    tokio::select! {
        () = pass(near.0, far.1, open.clone()) => {}
        () = pass(far.0, near.1, open) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(length) = from.read(&mut piece).await {
        if open.wait_for(|open| *open).await.is_err() || length == 0 || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
