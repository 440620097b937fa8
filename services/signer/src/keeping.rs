//! Where authorities are kept: a directory of mode 0700 for each issuer, with `ca.key` (0600) and `ca.crt`.
//!
//! The key is written first, the certificate after it, each beside its place and renamed: a crash at any line leaves
//! nothing, or a key whose certificate is made at the next start, or both. Two signers that start at once take turns.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use certctl_model::{key::KeyFacts, secret::Secret, time::Time};
use certctl_runtime::private::{NewFile, PrivateDir};
use certctl_x509::{facts::CertificateFacts, keys::KeyPair, pem, scheme::RsaPadding};
use zeroize::Zeroizing;

use crate::{
    authority,
    key::SigningKey,
    token::{self, TokenKey},
};

/// A key and its certificates, the authority's own first.
pub(crate) type Pair = (Box<dyn SigningKey>, Vec<CertificateFacts>);

/// An authority that an operator brought: a certificate file with the whole chain, and where its key is.
#[derive(Clone)]
pub(crate) struct Brought {
    pub(crate) certificate: PathBuf,
    pub(crate) key: BroughtKey,
    pub(crate) padding: RsaPadding,
}

/// Where the key of a brought authority is.
#[derive(Clone)]
pub(crate) enum BroughtKey {
    /// In a file.
    File(PathBuf),
    /// In a token.
    Token(token::Place),
}

impl Brought {
    /// Reads the certificates and opens the key.
    pub(crate) fn load(&self, passphrase: Option<&Secret>) -> Result<Pair> {
        let chain = read_chain(&self.certificate)?;
        let key: Box<dyn SigningKey> = match &self.key {
            // A group is how orchestrators hand secrets out; everyone is too many.
            BroughtKey::File(path) => Box::new(read_key(path, passphrase, 0o007)?.with_padding(self.padding)),
            BroughtKey::Token(place) => {
                let own = chain.first().context("there is no certificate")?;
                Box::new(TokenKey::open(place, own, self.padding)?)
            }
        };
        Ok((key, chain))
    }
}

/// The directory of one issuer.
pub(crate) struct Home<'a> {
    pub(crate) directory: PathBuf,
    pub(crate) passphrase: Option<&'a Secret>,
    /// For a root that is made.
    pub(crate) common_name: &'a str,
    /// For a key that is made.
    pub(crate) algorithm: KeyFacts,
    pub(crate) padding: RsaPadding,
    /// When a root that is made begins.
    pub(crate) not_before: Time,
}

impl Home<'_> {
    /// Loads the issuer's key and certificate, or makes them if there never were any.
    ///
    /// `published` is the certificate that the database knows the issuer by: behind it no other root is ever made.
    pub(crate) fn load_or_make(&self, published: Option<&CertificateFacts>) -> Result<Pair> {
        make_directory(&self.directory)?;
        let lock = File::create(self.directory.join("lock")).context("cannot open the lock file")?;
        lock.lock().context("cannot lock the directory")?;
        let (key_path, certificate_path) = (self.directory.join("ca.key"), self.directory.join("ca.crt"));
        let has_certificate = exists(&certificate_path)?;
        let key = if exists(&key_path)? {
            read_key(&key_path, self.passphrase, 0o077)?
        } else {
            ensure!(
                !has_certificate,
                "{} is missing but its certificate is there; restore the key from a backup",
                key_path.display()
            );
            ensure!(
                published.is_none(),
                "{} is missing although this issuer has signed before; restore the directory from a backup",
                key_path.display()
            );
            let key = KeyPair::generate(self.algorithm)?;
            let text = match self.passphrase {
                Some(passphrase) => Zeroizing::new(key.to_sealed_pem(passphrase)?),
                None => key.to_pkcs8_pem()?,
            };
            replace(&key_path, 0o600, text.as_bytes())?;
            key
        };
        let key = key.with_padding(self.padding);
        let chain = if has_certificate {
            read_chain(&certificate_path)?
        } else {
            let certificate = match published {
                Some(published) if published.pairs_with(&key) => published.clone(),
                Some(_) => bail!(
                    "{} is not the key this issuer has signed with before; restore the directory from a backup",
                    key_path.display()
                ),
                None => {
                    let der = authority::root(&key, self.common_name, self.not_before)?;
                    CertificateFacts::parse_der(&der)?
                }
            };
            replace(&certificate_path, 0o644, certificate.to_pem().as_bytes())?;
            vec![certificate]
        };
        ensure!(
            published.is_none_or(|published| chain.first().is_some_and(|own| own.der == published.der)),
            "{} is not the certificate this issuer has signed with before; restore the directory from a backup",
            certificate_path.display()
        );
        Ok((Box::new(key), chain))
    }
}

/// Makes a directory that only its owner can enter.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    let made = PrivateDir::open(path, 0o700);
    let directory = made.with_context(|| format!("cannot make the directory {}", path.display()))?;
    let mode = fs::metadata(directory.path())?.permissions().mode();
    ensure!(
        mode & 0o077 == 0,
        "the directory {} is open to others (mode {:o}); chmod 700 it",
        path.display(),
        mode & 0o777
    );
    Ok(())
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .with_context(|| format!("cannot look for {}", path.display()))
}

fn read_key(path: &Path, passphrase: Option<&Secret>, forbidden: u32) -> Result<KeyPair> {
    let file = File::open(path).with_context(|| format!("cannot open the key {}", path.display()))?;
    let mode = file.metadata()?.permissions().mode();
    ensure!(
        mode & forbidden == 0,
        "the key {} can be read by others (mode {:o}); chmod 600 it and consider it known",
        path.display(),
        mode & 0o777
    );
    let text = Zeroizing::new(read(file, path)?);
    if passphrase.is_some() && text.contains("BEGIN PRIVATE KEY") {
        tracing::warn!("a passphrase is set, but {} is not sealed", path.display());
    }
    KeyPair::from_pem(&text, passphrase).with_context(|| format!("cannot load the key {}", path.display()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateFacts>> {
    let file = File::open(path).with_context(|| format!("cannot open the certificate {}", path.display()))?;
    CertificateFacts::parse_pem_chain(&read(file, path)?)
        .with_context(|| format!("cannot load the certificate {}", path.display()))
}

fn read(file: File, path: &Path) -> Result<String> {
    const MAX_BYTES: u64 = 1024 * 1024;
    // Reserved in full: a text that grows would leave copies of a key behind.
    let size = file.metadata()?.len();
    ensure!(
        size <= MAX_BYTES,
        "{} has {size} bytes; at most {MAX_BYTES} are read",
        path.display()
    );
    let mut octets = Vec::with_capacity(usize::try_from(size)? + 1);
    file.take(MAX_BYTES)
        .read_to_end(&mut octets)
        .with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(octets).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        anyhow!("{} is not text; PEM is needed, not DER", path.display())
    })
}

/// Writes beside the place and renames, so that the file is there whole or not at all, after a power failure too.
pub(crate) fn replace(path: &Path, mode: u32, octets: &[u8]) -> Result<()> {
    let written = || -> std::io::Result<()> {
        let mut file = NewFile::beside(path, mode)?;
        file.write_all(octets)?;
        file.commit()
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// The certificate the database knows an issuer by.
pub(crate) fn published(chain_pem: &str) -> Result<CertificateFacts> {
    let blocks = pem::decode_all(chain_pem, 1024 * 1024)?;
    let first = blocks.first().context("the published chain is empty")?;
    Ok(CertificateFacts::parse_der(&first.der)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home<'a>(directory: &Path, passphrase: Option<&'a Secret>) -> Home<'a> {
        Home {
            directory: directory.join("iss-local"),
            passphrase,
            common_name: "Test CA",
            algorithm: KeyFacts::P256,
            padding: RsaPadding::Pkcs1,
            not_before: Time::from_unix(1_700_000_000),
        }
    }

    fn refusal(result: Result<Pair>) -> String {
        result.map(|_| ()).map_err(|error| format!("{error:#}")).unwrap_err()
    }

    #[test]
    fn a_root_is_made_once_and_found_again_whatever_a_crash_left() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(directory.path(), None);
        let (key, chain) = home.load_or_make(None).unwrap();
        let mode = |name: &str| fs::metadata(home.directory.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("."), mode("ca.key")), (0o700, 0o600));
        let again = home.load_or_make(Some(&chain[0])).unwrap();
        assert_eq!((again.0.spki_der(), &again.1), (key.spki_der(), &chain));

        // Killed before the certificate was renamed, after it was published or before.
        fs::write(home.directory.join("ca.key.new"), "half").unwrap();
        fs::remove_file(home.directory.join("ca.crt")).unwrap();
        assert_eq!(home.load_or_make(Some(&chain[0])).unwrap().1, chain);
        fs::remove_file(home.directory.join("ca.crt")).unwrap();
        assert_eq!(home.load_or_make(None).unwrap().0.spki_der(), key.spki_der());
    }

    #[test]
    fn behind_a_published_certificate_no_other_root_is_made() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let published = home(one.path(), None).load_or_make(None).unwrap().1.remove(0);
        let empty = home(other.path(), None);
        assert!(refusal(empty.load_or_make(Some(&published))).contains("restore the directory from a backup"));
        assert!(!empty.directory.join("ca.key").exists());
        empty.load_or_make(None).unwrap();
        assert!(refusal(empty.load_or_make(Some(&published))).contains("not the certificate"));
        fs::remove_file(empty.directory.join("ca.crt")).unwrap();
        assert!(refusal(empty.load_or_make(Some(&published))).contains("not the key"));
    }

    #[test]
    fn a_key_is_sealed_and_kept_from_others() {
        let directory = tempfile::tempdir().unwrap();
        let passphrase = Secret::new("correct horse");
        home(directory.path(), Some(&passphrase)).load_or_make(None).unwrap();
        let plain = home(directory.path(), None);
        let key = plain.directory.join("ca.key");
        assert!(fs::read_to_string(&key).unwrap().contains("ENCRYPTED PRIVATE KEY"));
        assert!(refusal(plain.load_or_make(None)).contains("passphrase is needed"));
        let wrong = Secret::new("wrong");
        assert!(refusal(home(directory.path(), Some(&wrong)).load_or_make(None)).contains("does not open"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            refusal(home(directory.path(), Some(&passphrase)).load_or_make(None)).contains("can be read by others")
        );
    }

    #[test]
    fn two_that_start_at_once_make_one_root() {
        let directory = tempfile::tempdir().unwrap();
        let make = || home(directory.path(), None).load_or_make(None).unwrap().1.remove(0).der;
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.iter().all(|der| *der == made[0]));
    }
}
