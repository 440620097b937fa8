//! Free ports on the loopback address, remembered, so that addresses survive a restart.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::files;

/// Ports by name, kept in a file.
pub struct Ports {
    file: PathBuf,
    taken: BTreeMap<String, u16>,
}

impl Ports {
    /// Opens the file; an absent one is an empty one.
    ///
    /// # Errors
    ///
    /// The file is not ours.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        let taken = match files::read(file)? {
            Some(json) => serde_json::from_str(&json).with_context(|| format!("{} is damaged", file.display()))?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            file: file.to_owned(),
            taken,
        })
    }

    /// Returns the remembered port of `name` while nobody else listens there, else `preferred`, else any free one.
    ///
    /// # Errors
    ///
    /// No port is free, or the file cannot be written.
    pub fn take(&mut self, name: &str, preferred: Option<u16>) -> anyhow::Result<u16> {
        let remembered = self.taken.get(name).copied();
        if let Some(port) = remembered.filter(|port| is_free(*port)) {
            return Ok(port);
        }
        let ours = |port: &u16| self.taken.values().any(|taken| taken == port);
        let port = match preferred.filter(|port| !ours(port) && is_free(*port)) {
            Some(port) => port,
            None => self.any()?,
        };
        self.taken.insert(name.to_owned(), port);
        files::write_private(&self.file, &serde_json::to_string_pretty(&self.taken)?)?;
        Ok(port)
    }

    /// Below the range from which the kernel takes ports of outgoing connections: those would steal the port of a
    /// service while it restarts.
    fn any(&self) -> anyhow::Result<u16> {
        const FIRST: u16 = 20_000;
        const COUNT: u16 = 12_000;
        for _ in 0..1_000 {
            let mut random = [0; 2];
            aws_lc_rs::rand::fill(&mut random).context("the system has no random numbers")?;
            let port = FIRST + u16::from_ne_bytes(random) % COUNT;
            if !self.taken.values().any(|taken| *taken == port) && is_free(port) {
                return Ok(port);
            }
        }
        bail!("no port from {FIRST} to {} is free on 127.0.0.1", FIRST + (COUNT - 1))
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_remembered_until_someone_else_listens_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ports.json");
        let first = Ports::open(&file).unwrap().take("api", None).unwrap();
        let mut again = Ports::open(&file).unwrap();
        assert_eq!(again.take("api", None).unwrap(), first);
        assert_ne!(again.take("demo", Some(first)).unwrap(), first);

        let _other = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        let second = again.take("api", None).unwrap();
        assert_ne!(second, first);
        assert_eq!(Ports::open(&file).unwrap().take("api", None).unwrap(), second);
    }
}
