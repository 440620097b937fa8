//! A way to a server that can be shut: connections through it end, and new ones come to nothing.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Stands before a server on this machine.
pub struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _accepting: JoinSet<()>,
}

impl Gate {
    /// Opens a way to `server`.
    ///
    /// # Panics
    ///
    /// There is no free port.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = watch::channel(true);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut through = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                if !*is_open.borrow_and_update() {
                    continue;
                }
                through.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        _ended = copy_bidirectional(&mut client, &mut server) => {}
                        _shut = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self {
            address,
            open,
            _accepting: accepting,
        }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens or shuts it.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}
