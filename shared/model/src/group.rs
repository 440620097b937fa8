//! Agent groups: the criteria by which agents belong to one.
//!
//! Not here: which agents there are; the database compares, by what is read here.

use std::{fmt::Display, net::IpAddr};

use ipnet::IpNet;
use semver::{Version, VersionReq};

crate::words! {
    /// How an agent is named by a group.
    pub enum Membership {
        /// It belongs to the group, whatever it is.
        Include = "include",
        /// It does not, whatever it is.
        Exclude = "exclude",
    }
}

/// Reads a block of addresses; one address is a block of its own.
///
/// # Errors
/// What would be right.
pub fn block(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().map(|network| network.trunc());
    network
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "is a block of addresses like 10.0.0.0/8 or 2001:db8::/32".to_owned())
}

/// Versions of agents that fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Versions(VersionReq);

impl Versions {
    /// Reads a range (`>=2.0.0, <3.0.0`, `~2.1`, `^2`), or one whole version, which is then the only one that fits.
    ///
    /// # Errors
    /// What would be right.
    pub fn read(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('v').unwrap_or(text);
        let range = match bare.parse::<Version>() {
            Ok(_) => format!("={bare}"),
            Err(_) => text.to_owned(),
        };
        let refusal = |why: &dyn Display| format!("is a version like 2.1.0 or a range like \">=2.0.0, <3.0.0\": {why}");
        range.parse().map(Self).map_err(|why| refusal(&why))
    }

    /// Whether the version an agent gives fits; one that is no semantic version never does.
    pub fn admit(&self, said: &str) -> bool {
        let version = said.strip_prefix('v').unwrap_or(said).parse::<Version>();
        version.is_ok_and(|version| self.0.matches(&version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_versions() {
        for (range, fits, does_not) in [
            (
                ">=2.0.0, <3.0.0",
                &["2.0.0", "v2.10.3", "2.9.9+build"][..],
                &["1.9.9", "3.0.0", "", "two"][..],
            ),
            ("2.1.0", &["2.1.0", "v2.1.0"], &["2.1.1", "2.10.0", "2.1"]),
            ("v2.1.0", &["2.1.0"], &["2.2.0"]),
            ("~2.1", &["2.1.9"], &["2.2.0"]),
            ("^2", &["2.9.0"], &["3.0.0"]),
            ("*", &["0.0.1"], &["dev"]),
            (">=2.0.0", &["2.0.0"], &["2.0.0-rc.1"]),
            (">=2.0.0-rc.1", &["2.0.0-rc.2", "2.0.0"], &["2.0.0-beta"]),
        ] {
            let versions = Versions::read(range).unwrap();
            for said in fits {
                assert!(versions.admit(said), "{said} fits {range}");
            }
            for said in does_not {
                assert!(!versions.admit(said), "{said} does not fit {range}");
            }
        }
        for bad in ["two", ">=", "2.1.0.0", ">=2 <3 or 5", "=2.0.0; drop"] {
            assert!(Versions::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_block_of_addresses_has_one_form() {
        for (text, form) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("2001:DB8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(block(text).unwrap().to_string(), form, "{text}");
        }
        for bad in ["10.0.0.0/33", "10.0.0", "hosts", "2001:db8::/129", "10.0.0.0/8 or so"] {
            assert!(block(bad).is_err(), "{bad}");
        }
    }
}
