//! The highest number of each CRL that was published, kept beside the key: a database that was restored from an older
//! copy must not have a number given out twice, and relying parties must not see one fall (RFC 5280 §5.2.3).

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use certctl_store::crls::List;
use tracing::{error, warn};

use crate::keeping;

/// The file with the highest number of a list. A delta counts with the full CRL.
pub(super) struct Highest {
    directory: PathBuf,
    path: PathBuf,
}

impl Highest {
    /// `directory` is that of all authorities.
    pub(super) fn of(directory: &Path, list: &List) -> Self {
        let directory = directory.join(list.issuer.as_str());
        Self {
            path: directory.join(format!("crl-{}.number", list.shard())),
            directory,
        }
    }

    /// The number after all that were published, as far as the database and the file know.
    pub(super) fn next(&self, list: &List, in_database: i64) -> Result<i64> {
        let published = self.read()?;
        let missing = published - in_database;
        // One is what a crash between the file and the database leaves.
        if missing == 1 {
            warn!(
                issuer.id = %list.issuer, crl_number = published,
                "number {published} of {list} was reserved and is not in the database; it is left out"
            );
        } else if missing > 1 {
            error!(
                issuer.id = %list.issuer, crl_number = published,
                "{list} was published with number {published}, but the database knows {in_database} only: it is older \
                 than what was published. Numbers go on above {published}; restore the revocations that it lacks"
            );
        }
        Ok(published.max(in_database) + 1)
    }

    /// Whether this is the highest number that was published, as far as the file knows.
    pub(super) fn is_at(&self, number: i64) -> bool {
        matches!(self.read(), Ok(published) if published == number)
    }

    /// Notes a number before the CRL with it can be seen.
    pub(super) fn note(&self, number: i64) -> Result<()> {
        keeping::make_directory(&self.directory)?;
        keeping::replace(&self.path, 0o600, format!("{number}\n").as_bytes())
    }

    fn read(&self) -> Result<i64> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            text => text.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        let number = text.trim().parse().ok().filter(|number| *number >= 0);
        number.with_context(|| format!("{} holds no number of a CRL", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_above_what_was_published_whatever_the_database_knows() {
        let directory = tempfile::tempdir().unwrap();
        let list = List::full("iss-1".parse().unwrap());
        let highest = Highest::of(directory.path(), &list);
        assert_eq!(highest.next(&list, 0).unwrap(), 1);
        assert_eq!(highest.next(&list, 41).unwrap(), 42);
        highest.note(42).unwrap();
        for (in_database, next) in [(42, 43), (41, 43), (0, 43), (100, 101)] {
            assert_eq!(highest.next(&list, in_database).unwrap(), next, "{in_database}");
        }
        for broken in ["", "x", "-1", "99999999999999999999"] {
            fs::write(directory.path().join("iss-1/crl-0.number"), broken).unwrap();
            assert!(highest.next(&list, 0).is_err(), "{broken}");
        }
    }
}
