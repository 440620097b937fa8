//! What stands in front of and beside the API, and what serves certificates: HAProxy, Redis and PgBouncer of this
//! machine.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use certctl_local::ports::Ports;
use certctl_local::postgres::server_user;
use certctl_local::process::{Service, Spec, find};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use crate::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

fn program(name: &str) -> std::path::PathBuf {
    find(name).unwrap_or_else(|| panic!("there is no {name}; run script/bootstrap test"))
}

fn port(dir: &Path, name: &str) -> u16 {
    let mut ports = Ports::open(&dir.join(format!("{name}-port.json"))).unwrap();
    ports.take(name, None).unwrap()
}

/// A Redis that keeps nothing on disk.
pub struct Redis {
    service: Service,
    port: u16,
}

impl Redis {
    /// Starts it; `dir` is for its log.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn start(dir: &Path) -> Self {
        let port = port(dir, "redis");
        let spec = Spec::new("redis", &program("redis-server"), dir)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "no", "--daemonize", "no"]);
        let mut redis = Self {
            service: Service::spawn(spec).unwrap(),
            port,
        };
        redis.answers().await;
        redis
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// It does not run.
    pub fn pid(&self) -> u32 {
        self.service.pid().expect("it runs")
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.service.kill9();
    }

    /// Starts it again, empty, on the same port.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn restart(&mut self) {
        self.service.restart().unwrap();
        self.answers().await;
    }

    async fn answers(&mut self) {
        let port = self.port;
        eventually("Redis to answer", PATIENCE, async || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await?;
            ensure!(&answer == b"+PONG\r\n", "it says {answer:?}");
            Ok(())
        })
        .await;
    }
}

/// A PgBouncer between a client and a Postgres.
pub struct PgBouncer {
    port: u16,
    _service: Service,
}

impl PgBouncer {
    /// Starts it in a pool mode (`session`, `transaction`) before the Postgres of a URL, whose user and password it
    /// knows besides `more`. Settings that a client sends when it connects are dropped.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn start(dir: &Path, mode: &str, postgres: &Url, more: &[(&str, &str)]) -> Self {
        let port = port(dir, &format!("pgbouncer-{mode}"));
        let home = dir.join(format!("pgbouncer-{mode}"));
        fs::create_dir_all(&home).unwrap();
        let (users, log) = (home.join("users"), home.join("log"));
        let password = postgres.password().unwrap_or_default();
        let known = more.iter().copied().chain([(postgres.username(), password)]);
        let known: String = known
            .map(|(user, password)| format!("\"{user}\" \"{password}\"\n"))
            .collect();
        fs::write(&users, known).unwrap();
        let config = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
             auth_type=trust\nauth_file={}\npool_mode={mode}\nlogfile={}\nunix_socket_dir=\n\
             ignore_startup_parameters=extra_float_digits,options\n",
            postgres.host_str().unwrap_or("127.0.0.1"),
            postgres.port().unwrap_or(5432),
            users.display(),
            log.display(),
        );
        let file = home.join("pgbouncer.ini");
        fs::write(&file, config).unwrap();
        // It does not run as root, and reads its files as the user that it becomes.
        let spec = Spec::new(&format!("pgbouncer-{mode}"), &program("pgbouncer"), dir)
            .args(["-q"])
            .args([&file]);
        let user = server_user().unwrap();
        if let Some(user) = user {
            for path in [&home, &users, &file] {
                chown(path, Some(user.uid), Some(user.gid)).unwrap();
            }
            fs::set_permissions(dir, Permissions::from_mode(0o711)).unwrap();
        }
        let service = Service::spawn(spec.user(user)).unwrap();
        eventually("PgBouncer to listen", PATIENCE, async || {
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?)
        })
        .await;
        Self {
            port,
            _service: service,
        }
    }

    /// The URL of a database through it, for one of its users.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}

/// An HAProxy in front of several servers, one after the other in turn.
pub struct HaProxy {
    /// Where it listens.
    pub address: SocketAddr,
    _service: Service,
}

impl HaProxy {
    /// Starts it; `dir` is for its configuration and log, `each` what every server line says besides the address.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn start(dir: &Path, servers: &[SocketAddr], each: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port(dir, "haproxy")));
        let mut config = format!(
            "defaults\n  mode http\n  option forwardfor\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend public\n  bind {address}\n  default_backend servers\n\
             backend servers\n  balance roundrobin\n"
        );
        for (number, server) in servers.iter().enumerate() {
            writeln!(config, "  server s{number} {server} {each}").expect("a text can be written to");
        }
        let file = dir.join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let spec = Spec::new("haproxy", &program("haproxy"), dir)
            .args(["-db", "-f"])
            .args([&file]);
        let service = Service::spawn(spec).unwrap();
        eventually("HAProxy to listen", PATIENCE, async || {
            Ok(TcpStream::connect(address).await?)
        })
        .await;
        Self {
            address,
            _service: service,
        }
    }
}

/// An HAProxy that ends TLS for several backends, each at an address and with files of its own.
pub struct Backends {
    /// Where they listen.
    pub addresses: Vec<SocketAddr>,
    dir: PathBuf,
    service: Service,
}

impl Backends {
    /// Starts them, each with a certificate, its intermediates and its key in PEM; `dir` is for files and log.
    ///
    /// # Panics
    ///
    /// They do not start.
    pub async fn start(dir: &Path, bundles: &[&str]) -> Self {
        let address = |number: usize| (Ipv4Addr::LOCALHOST, port(dir, &format!("backend-{number}"))).into();
        Self::at((0..bundles.len()).map(address).collect(), dir, bundles).await
    }

    /// Starts them as [`start`](Self::start) does, on one port of as many addresses: 127.0.0.1, 127.0.0.2, and so on.
    ///
    /// # Panics
    ///
    /// They do not start.
    pub async fn of_one_name(dir: &Path, bundles: &[&str]) -> Self {
        let port = port(dir, "backends");
        let addresses = (1..=bundles.len() as u8).map(|n| (Ipv4Addr::new(127, 0, 0, n), port).into());
        Self::at(addresses.collect(), dir, bundles).await
    }

    async fn at(addresses: Vec<SocketAddr>, dir: &Path, bundles: &[&str]) -> Self {
        let mut config = "defaults\n  mode http\n  timeout client 10s\n".to_owned();
        for (number, (bundle, address)) in bundles.iter().zip(&addresses).enumerate() {
            let file = dir.join(format!("backend-{number}.pem"));
            fs::write(&file, bundle).unwrap();
            let file = file.display();
            writeln!(
                config,
                "frontend f{number}\n  bind {address} ssl crt {file}\n  http-request return status 204"
            )
            .expect("a text can be written to");
        }
        let file = dir.join("backends.cfg");
        fs::write(&file, config).unwrap();
        let spec = Spec::new("backends", &program("haproxy"), dir)
            .args(["-db", "-f"])
            .args([&file]);
        let backends = Self {
            addresses,
            dir: dir.to_owned(),
            service: Service::spawn(spec).unwrap(),
        };
        backends.listen().await;
        backends
    }

    /// Has one of them serve something else from now on.
    ///
    /// # Panics
    ///
    /// They do not start again.
    pub async fn serve(&mut self, number: usize, bundle: &str) {
        fs::write(self.dir.join(format!("backend-{number}.pem")), bundle).unwrap();
        self.service.restart().unwrap();
        self.listen().await;
    }

    /// Ends all of them.
    pub fn stop(&mut self) {
        self.service.kill9();
    }

    async fn listen(&self) {
        for address in &self.addresses {
            eventually("the backends to listen", PATIENCE, async || {
                Ok(TcpStream::connect(address).await?)
            })
            .await;
        }
    }
}
