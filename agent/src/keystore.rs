//! The private keys of this host: one for every job that asked for one, made here, never sent anywhere.
//!
//! `<key_dir>/<certificate>/<job>.key` holds PKCS #8 in PEM, mode 0600 in directories 0700. Beside the keys, `deployed`
//! names the newest deployed ones, by the SHA-256 of their public halves.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use certctl_model::id::{CertificateId, JobId};
use certctl_model::key::KeyFacts;
use certctl_runtime::private::PrivateDir;
use certctl_x509::keys::KeyPair;
use tracing::{debug, info};
use zeroize::Zeroizing;

use crate::files;

/// The directory of keys. Its functions read and write files and may make an RSA key: call them off the async threads.
#[derive(Debug)]
pub struct Keystore {
    dir: PrivateDir,
}

/// How many deployed keys are kept: the present one, and the one before in case somebody goes back.
const KEEP: usize = 2;
const MAX_BYTES: u64 = 64 * 1024;
const KEY_MODE: u32 = 0o600;

impl Keystore {
    /// Opens the directory, making or narrowing it to mode 0700.
    ///
    /// # Errors
    /// It cannot be made, belongs to another user, or another user can write to it.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir =
            files::private_dir(dir).with_context(|| format!("cannot prepare the key directory {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The key for a job: the one made before when the job is asked again, else a new one, on disk before it is used.
    ///
    /// # Errors
    /// Such keys cannot be made here, or the disk failed.
    pub fn for_job(&self, certificate: &CertificateId, job: &JobId, kind: KeyFacts) -> Result<KeyPair> {
        let dir = files::private_dir(&self.of(certificate))?;
        let name = format!("{job}.key");
        let about = || format!("cannot write {}", dir.path().join(&name).display());
        if let Some(key) = load(&dir, &name)? {
            if key.facts() == kind {
                return Ok(key);
            }
            // The profile has changed its mind. A certificate for the first key may still exist, so it stays.
            let other = format!("{job}.{}.key", &key.spki_sha256()[..16]);
            dir.write(&other, KEY_MODE, key.to_pkcs8_pem()?.as_bytes())
                .with_context(about)?;
        }
        let key = KeyPair::generate(kind)?;
        dir.write(&name, KEY_MODE, key.to_pkcs8_pem()?.as_bytes())
            .with_context(about)?;
        info!(job.id = %job, certificate.id = %certificate, "made a key for job {job}: {kind}");
        Ok(key)
    }

    /// The key with this public half among those of a certificate.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(&self, certificate: &CertificateId, spki_sha256: &str) -> Result<Option<KeyPair>> {
        let fits = |dir: &PrivateDir, name: &str| match load(dir, name) {
            Ok(key) => key.filter(|key| key.spki_sha256() == spki_sha256),
            Err(error) => {
                debug!("passed over a key: {error:#}");
                None
            }
        };
        if let Some(dir) = self.existing(certificate)? {
            for (name, _) in keys(&dir)? {
                if let Some(key) = fits(&dir, &name) {
                    return Ok(Some(key));
                }
            }
        }
        // Agents of earlier versions had one key for each certificate, in SEC 1.
        Ok(fits(&self.dir, &format!("{certificate}.key")))
    }

    /// Remembers that a key is deployed, and removes those that came before the two newest deployed ones.
    ///
    /// Younger keys stay: one of them may belong to a job that is still open.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn deployed(&self, certificate: &CertificateId, spki_sha256: &str) -> Result<()> {
        const LIST: &str = "deployed";
        let Some(dir) = self.existing(certificate)? else {
            return Ok(());
        };
        let before = dir.read(LIST, MAX_BYTES)?.unwrap_or_default();
        let before = String::from_utf8_lossy(&before).into_owned();
        let others = before.lines().filter(|line| *line != spki_sha256);
        let newest: Vec<_> = std::iter::once(spki_sha256).chain(others).take(KEEP).collect();
        dir.write(LIST, KEY_MODE, newest.join("\n").as_bytes())
            .with_context(|| format!("cannot write {}", dir.path().join(LIST).display()))?;
        if newest.len() == KEEP {
            prune(&dir, certificate, &newest)?;
        }
        Ok(())
    }

    fn existing(&self, certificate: &CertificateId) -> Result<Option<PrivateDir>> {
        match PrivateDir::existing(&self.of(certificate)) {
            Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(None),
            found => found.with_context(|| format!("cannot read the keys of {certificate}")),
        }
    }

    /// Ids are safe as file names by their type: no '/', never beginning with '.'.
    fn of(&self, certificate: &CertificateId) -> PathBuf {
        self.dir.path().join(certificate.as_str())
    }
}

fn prune(dir: &PrivateDir, certificate: &CertificateId, newest: &[&str]) -> Result<()> {
    let mut kept = Vec::new();
    let mut others = Vec::new();
    for (name, made) in keys(dir)? {
        match load(dir, &name) {
            Ok(Some(key)) if newest.contains(&key.spki_sha256().as_str()) => kept.push(made),
            Ok(Some(_)) => others.push((name, made)),
            Ok(None) => {}
            Err(error) => debug!("passed over a key: {error:#}"),
        }
    }
    let Some(oldest) = kept.into_iter().min() else {
        return Ok(());
    };
    for (name, _) in others.into_iter().filter(|(_, made)| *made < oldest) {
        dir.remove(&name)
            .with_context(|| format!("cannot remove {}", dir.path().join(&name).display()))?;
        info!(certificate.id = %certificate, "removed a key of {certificate} that is no longer deployed");
    }
    Ok(())
}

/// The key files of a directory and when they were written.
fn keys(dir: &PrivateDir) -> Result<Vec<(String, SystemTime)>> {
    let about = || format!("cannot read {}", dir.path().display());
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(dir.path()).with_context(about)? {
        let entry = entry.with_context(about)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if name.ends_with(".key") {
            let made = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .with_context(about)?;
            keys.push((name, made));
        }
    }
    Ok(keys)
}

fn load(dir: &PrivateDir, name: &str) -> Result<Option<KeyPair>> {
    let path = dir.path().join(name);
    let bytes = dir
        .read(name, MAX_BYTES)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let Some(bytes) = bytes.map(Zeroizing::new) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not text", path.display()))?;
    let key = KeyPair::from_pem(text, None).with_context(|| format!("{} holds no usable key", path.display()))?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use certctl_model::key::KeyAlgorithm;

    use super::*;

    fn store() -> (tempfile::TempDir, Keystore) {
        let dir = tempfile::tempdir().unwrap();
        let store = Keystore::open(&dir.path().join("keys")).unwrap();
        (dir, store)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn certificate() -> CertificateId {
        "mc-1".parse().unwrap()
    }

    fn make(store: &Keystore, job: &str) -> KeyPair {
        store
            .for_job(&certificate(), &job.parse().unwrap(), KeyFacts::P256)
            .unwrap()
    }

    #[test]
    fn a_key_is_private_and_the_same_job_gets_it_again() {
        let (_dir, store) = store();
        let key = make(&store, "j-1");
        let dir = store.of(&certificate());
        assert_eq!(
            (mode(store.dir.path()), mode(&dir), mode(&dir.join("j-1.key"))),
            (0o700, 0o700, 0o600)
        );
        assert_eq!(make(&store, "j-1").spki_der(), key.spki_der());
        assert_ne!(make(&store, "j-2").spki_der(), key.spki_der());
        let names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_job_that_now_asks_for_another_kind_gets_a_new_key_and_the_first_is_still_found() {
        let (_dir, store) = store();
        let first = make(&store, "j-1");
        let p384 = KeyFacts {
            algorithm: KeyAlgorithm::Ecdsa,
            bits: 384,
        };
        let second = store.for_job(&certificate(), &"j-1".parse().unwrap(), p384).unwrap();
        assert_eq!(second.facts(), p384);
        for key in [first, second] {
            let found = store.find(&certificate(), &key.spki_sha256()).unwrap().unwrap();
            assert_eq!(found.spki_der(), key.spki_der());
        }
        let impossible = KeyFacts {
            algorithm: KeyAlgorithm::Rsa,
            bits: 1024,
        };
        assert!(
            store
                .for_job(&certificate(), &"j-3".parse().unwrap(), impossible)
                .is_err()
        );
    }

    #[test]
    fn the_key_of_an_earlier_agent_is_found_beside_files_that_are_no_keys() {
        let (_dir, store) = store();
        let key = crate::bundle::testing::key();
        fs::write(
            store.dir.path().join("mc-1.key"),
            key.to_pkcs8_pem().unwrap().as_bytes(),
        )
        .unwrap();
        make(&store, "j-1");
        fs::write(store.of(&certificate()).join("broken.key"), "").unwrap();
        assert!(store.find(&certificate(), &key.spki_sha256()).unwrap().is_some());
        assert!(store.find(&certificate(), "00").unwrap().is_none());
        assert!(
            store
                .find(&"mc-2".parse().unwrap(), &key.spki_sha256())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn keys_older_than_the_two_newest_deployed_are_removed_and_younger_ones_stay() {
        let (_dir, store) = store();
        let jobs = ["j-1", "j-2", "j-3", "j-4"];
        let keys: Vec<_> = jobs.iter().map(|job| make(&store, job).spki_sha256()).collect();
        for (age, job) in jobs.iter().rev().enumerate() {
            let file = fs::File::options()
                .write(true)
                .open(store.of(&certificate()).join(format!("{job}.key")))
                .unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 - age as u64))
                .unwrap();
        }
        let held = || {
            keys.iter()
                .map(|key| store.find(&certificate(), key).unwrap().is_some())
                .collect::<Vec<_>>()
        };
        for (deployed, left) in [
            (0, [true, true, true, true]),
            (0, [true, true, true, true]),
            (1, [true, true, true, true]),
            (2, [false, true, true, true]),
            (1, [false, true, true, true]),
        ] {
            store.deployed(&certificate(), &keys[deployed]).unwrap();
            assert_eq!(held(), left, "after deploying key {deployed}");
        }
    }
}
