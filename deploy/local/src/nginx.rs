//! An nginx of its own on a high port, and what any TLS server serves.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use aws_lc_rs::digest;
use certctl_runtime::served;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files;
use crate::process::{self, PATH, Service, Spec};

/// The name the demo serves.
pub const SERVER_NAME: &str = "demo.certctl.localhost";

/// An nginx in a directory of its own.
pub struct Demo {
    program: PathBuf,
    dir: PathBuf,
    address: SocketAddr,
    server: Service,
}

impl Demo {
    /// Writes the configuration to `<home>/nginx` and starts nginx on `address`.
    ///
    /// Until a certificate is deployed it serves a self-signed placeholder.
    ///
    /// # Errors
    ///
    /// nginx is not installed or does not start, or the path of `home` cannot be part of a target's commands.
    pub async fn start(home: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let program = process::find("nginx").context("nginx is not installed: apt-get install nginx-light")?;
        let dir = home.join("nginx");
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
        ensure!(
            dir.to_str().is_some_and(|text| text.chars().all(plain)),
            "the path {} has a character that commands of targets may not contain; choose another with --dir",
            dir.display()
        );
        files::directory(&dir, 0o711)?;
        files::directory(&dir.join("tls"), 0o711)?;
        let server = Spec::new("nginx", &program, home).args(arguments(&dir));
        write_placeholder(&dir)?;
        files::write(&dir.join("nginx.conf"), 0o644, &configuration(&dir, address))?;
        let mut demo = Self {
            server: Service::spawn(server)?,
            program,
            dir,
            address,
        };
        demo.wait_ready().await?;
        Ok(demo)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        const START_TIMEOUT: Duration = Duration::from_secs(10);
        let started = Instant::now();
        while served(self.address, SERVER_NAME).await.is_err() {
            if !self.server.is_running() || started.elapsed() > START_TIMEOUT {
                return Err(self.server.failure("does not serve"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Where it serves TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The configuration file, which it and every validation read.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("nginx.conf")
    }

    /// The certificate file.
    pub fn cert_path(&self) -> PathBuf {
        self.dir.join("tls/demo.pem")
    }

    /// The file of the issuer chain.
    pub fn chain_path(&self) -> PathBuf {
        self.dir.join("tls/demo-chain.pem")
    }

    /// The private key file.
    pub fn key_path(&self) -> PathBuf {
        self.dir.join("tls/demo.key")
    }

    /// The configuration of a target of type NGINX that deploys here.
    pub fn target_config(&self) -> Value {
        let [validate, reload] = commands(&self.program, &self.dir);
        json!({
            "cert_path": self.cert_path(),
            "key_path": self.key_path(),
            "chain_path": self.chain_path(),
            "validate_command": validate,
            "reload_command": reload,
            "verify_address": self.address.to_string(),
            "verify_server_name": SERVER_NAME,
        })
    }

    /// Has nginx read its configuration again.
    ///
    /// # Errors
    ///
    /// nginx's own message.
    pub fn reload(&self) -> anyhow::Result<()> {
        let output = Command::new(&self.program)
            .args(arguments(&self.dir))
            .args(["-s", "reload"])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .output()
            .context("cannot run nginx")?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nginx does not reload: {}", message.trim_end());
        Ok(())
    }

    /// What it serves now.
    ///
    /// # Errors
    ///
    /// As [`served()`].
    pub async fn served(&self) -> anyhow::Result<Served> {
        served(self.address, SERVER_NAME).await
    }

    /// Stops it.
    pub async fn stop(&mut self) {
        self.server.terminate(Duration::from_secs(10)).await;
    }

    /// Starts it again with the files as they are.
    ///
    /// # Errors
    ///
    /// It does not start; the error has the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.server.restart()?;
        self.wait_ready().await
    }

    /// Whether it runs now.
    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }
}

/// The commands of a target of the demo in `home`; none where nginx is not installed.
pub fn target_commands(home: &Path) -> Option<[String; 2]> {
    Some(commands(&process::find("nginx")?, &home.join("nginx")))
}

fn commands(program: &Path, dir: &Path) -> [String; 2] {
    let words = [program.display().to_string()].into_iter().chain(arguments(dir));
    let command = words.collect::<Vec<_>>().join(" ");
    [" -t", " -s reload"].map(|end| command.clone() + end)
}

fn arguments(dir: &Path) -> [String; 4] {
    let conf = dir.join("nginx.conf");
    [
        "-p".into(),
        dir.display().to_string(),
        "-c".into(),
        conf.display().to_string(),
    ]
}

fn configuration(dir: &Path, address: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        r#"# Written at every start of the demo.
daemon off;
worker_processes 2;
pid {dir}/nginx.pid;
error_log {dir}/error.log notice;
events {{
    worker_connections 512;
}}
http {{
    access_log off;
    server_tokens off;
    client_body_temp_path {dir}/tmp-body;
    proxy_temp_path {dir}/tmp-proxy;
    fastcgi_temp_path {dir}/tmp-fastcgi;
    uwsgi_temp_path {dir}/tmp-uwsgi;
    scgi_temp_path {dir}/tmp-scgi;
    server {{
        listen {address} ssl;
        server_name {SERVER_NAME};
        ssl_certificate {dir}/tls/demo.pem;
        ssl_certificate_key {dir}/tls/demo.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        default_type text/plain;
        location / {{
            return 200 "certctl demo\n";
        }}
    }}
}}
"#
    )
}

/// nginx does not start without a pair; what has been deployed is never touched.
fn write_placeholder(dir: &Path) -> anyhow::Result<()> {
    let (cert, key) = (dir.join("tls/demo.pem"), dir.join("tls/demo.key"));
    if cert.exists() && key.exists() {
        return Ok(());
    }
    let pair = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).context("cannot make a placeholder")?;
    files::write_private(&key, &pair.signing_key.serialize_pem())?;
    files::write(&cert, 0o644, &pair.cert.pem())
}

/// The certificate a TLS server showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Serial number: lower-case hexadecimal digits without leading zeros.
    pub serial: String,
    /// SHA-256 of the certificate's DER, in lower-case hexadecimal digits.
    pub fingerprint: String,
    /// End of its validity.
    pub not_after: OffsetDateTime,
    /// The certificates as sent, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// Connects, completes the handshake and returns what was served, whoever signed it.
///
/// # Errors
///
/// No connection, no handshake, or no certificate in it, within five seconds.
pub async fn served(address: SocketAddr, server_name: &str) -> anyhow::Result<Served> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let seen = served::look(address, server_name, None, TIMEOUT).await;
    let chain = seen.map_err(anyhow::Error::msg)?.chain;
    let leaf = &chain[0];
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|error| anyhow!("the served certificate is damaged: {error}"))?;
    let digits = hex::encode(certificate.raw_serial());
    Ok(Served {
        serial: digits.trim_start_matches('0').to_owned(),
        fingerprint: hex::encode(digest::digest(&digest::SHA256, leaf)),
        not_after: certificate.validity().not_after.to_datetime(),
        chain,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ports::Ports;

    fn run(command: &str) -> (bool, String) {
        let mut words = command.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    #[tokio::test]
    async fn a_new_pair_is_served_after_a_reload_and_a_broken_configuration_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let port = Ports::open(&home.path().join("ports.json"))
            .unwrap()
            .take("demo", None)
            .unwrap();
        let mut demo = Demo::start(home.path(), (Ipv4Addr::LOCALHOST, port).into())
            .await
            .unwrap();
        let target = demo.target_config();
        let placeholder = demo.served().await.unwrap();
        assert!(!placeholder.serial.starts_with('0') && placeholder.fingerprint.len() == 64);

        fs::remove_file(demo.cert_path()).unwrap();
        write_placeholder(&demo.dir).unwrap();
        let validate = target["validate_command"].as_str().unwrap();
        let (valid, message) = run(validate);
        assert!(valid && message.contains("test is successful"), "{message}");
        assert!(run(target["reload_command"].as_str().unwrap()).0);
        let started = Instant::now();
        while demo.served().await.unwrap() == placeholder {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "the old certificate is still served"
            );
        }

        let conf = fs::read_to_string(demo.config_path()).unwrap();
        fs::write(demo.config_path(), "nonsense;").unwrap();
        let (valid, message) = run(validate);
        assert!(
            !valid && message.contains("unknown directive \"nonsense\""),
            "{message}"
        );
        assert!(demo.reload().is_err());
        fs::write(demo.config_path(), conf).unwrap();
        demo.reload().unwrap();

        demo.stop().await;
        assert!(!demo.is_running() && demo.served().await.is_err());
        demo.restart().await.unwrap();
    }
}
