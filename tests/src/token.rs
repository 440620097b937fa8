//! A software token (SoftHSM) of its own for each story.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

/// The module of SoftHSM, wherever the distribution put it.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

/// A token with one key in it.
pub struct Token {
    dir: TempDir,
}

impl Token {
    /// Makes a token named `certctl` and puts a private key (PKCS #8, PEM) into it, with label `ca` and id 0a.
    ///
    /// # Panics
    ///
    /// There is no SoftHSM, or it does not take the key.
    pub fn with_key(pem: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens).unwrap();
        let config = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(dir.path().join("softhsm2.conf"), config).unwrap();
        fs::write(dir.path().join("pin"), "271828\n").unwrap();
        let token = Self { dir };
        token.run(&[
            "--init-token",
            "--free",
            "--label",
            "certctl",
            "--so-pin",
            "314159",
            "--pin",
            "271828",
        ]);
        let key = token.path("imported.key");
        fs::write(&key, pem).unwrap();
        let (key, import) = (
            key.to_str().unwrap().to_owned(),
            ["--token", "certctl", "--pin", "271828"],
        );
        token.run(
            &[
                &["--import", key.as_str()],
                &import[..],
                &["--label", "ca", "--id", "0a"],
            ]
            .concat(),
        );
        fs::remove_file(key).unwrap();
        token
    }

    /// Arguments of a signer whose authority has this certificate.
    ///
    /// # Panics
    ///
    /// There is no SoftHSM.
    pub fn arguments(&self, certificate: &str) -> Vec<String> {
        let module = MODULES.into_iter().find(|path| fs::exists(path).unwrap());
        let module = module.expect("there is no SoftHSM; run script/bootstrap test");
        let (pin, dir) = (self.path("pin"), self.dir.path());
        [
            ["--ca-cert-path", certificate],
            ["--pkcs11-module", module],
            ["--pkcs11-token", "certctl"],
            ["--pkcs11-key-label", "ca"],
            ["--pkcs11-key-id", "0a"],
            ["--pkcs11-pin-file", pin.to_str().unwrap()],
            ["--pkcs11-paths", dir.to_str().unwrap()],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    /// The variable by which the module finds its settings.
    pub fn variable(&self) -> (&'static str, String) {
        ("SOFTHSM2_CONF", self.path("softhsm2.conf").to_str().unwrap().to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) {
        let (name, value) = self.variable();
        let output = Command::new("softhsm2-util").args(args).env(name, value).output();
        let output = output.expect("there is no softhsm2-util; run script/bootstrap test");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said));
    }
}
