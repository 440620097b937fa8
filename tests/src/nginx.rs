//! An nginx whose configuration the story writes, and which it starts when it likes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use certctl_local::process::{Service, Spec, find};
use tempfile::TempDir;

use crate::eventually;

/// An nginx in a directory of its own.
pub struct Nginx {
    dir: TempDir,
    service: Option<Service>,
}

/// An address of this machine that was free a moment ago.
///
/// # Panics
/// There is none.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

impl Nginx {
    /// Prepares one that is not configured and does not run.
    ///
    /// # Panics
    /// There is no space for it.
    pub fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, service: None }
    }

    /// Writes its configuration around these blocks of `http`.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn configure(&self, servers: &str) {
        let dir = self.dir.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}{servers}\n}}\n"
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("nginx.conf")
    }

    fn command(&self) -> String {
        let program = find("nginx").expect("script/bootstrap installs nginx");
        let (dir, config) = (self.dir.path().display(), self.config());
        format!("{} -p {dir} -c {}", program.display(), config.display())
    }

    /// The command that checks its configuration.
    pub fn validate(&self) -> String {
        self.command() + " -t"
    }

    /// The command that makes it read its configuration and its files again.
    pub fn reload(&self) -> String {
        self.command() + " -s reload"
    }

    /// Starts it, and waits until something answers at `address`.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(&mut self, address: SocketAddr) {
        let command = self.command();
        let mut words = command.split(' ');
        let spec = Spec::new("nginx", Path::new(words.next().unwrap()), self.dir.path()).args(words);
        let service = self.service.insert(Service::spawn(spec).unwrap());
        eventually("nginx to listen", Duration::from_secs(10), async || {
            ensure!(service.is_running(), "it does not start: {}", service.log_tail());
            Ok(tokio::net::TcpStream::connect(address).await?)
        })
        .await;
    }
}
