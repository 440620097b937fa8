//! Profiles: what may be issued.

use std::time::Duration;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    key::{KeyAlgorithm, KeyFacts},
    name::{self, San},
};

/// A key algorithm and the smallest size of it that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRule {
    /// The algorithm.
    pub algorithm: KeyAlgorithm,
    /// Smallest size in bits; 0 means any that is safe (RSA 2048, ECDSA 256).
    #[serde(default)]
    pub min_size: u32,
}

crate::words! {
    /// An extended key usage (RFC 5280 §4.2.1.12), by name or object identifier.
    pub enum ExtendedKeyUsage {
        /// TLS servers.
        ServerAuth = "serverAuth" | "1.3.6.1.5.5.7.3.1",
        /// TLS clients.
        ClientAuth = "clientAuth" | "1.3.6.1.5.5.7.3.2",
        /// Signed code.
        CodeSigning = "codeSigning" | "1.3.6.1.5.5.7.3.3",
        /// S/MIME.
        EmailProtection = "emailProtection" | "1.3.6.1.5.5.7.3.4",
        /// Time stamps.
        TimeStamping = "timeStamping" | "1.3.6.1.5.5.7.3.8",
    }
}

impl ExtendedKeyUsage {
    /// The arcs of the object identifier.
    pub const fn arcs(self) -> [u32; 9] {
        let last = match self {
            Self::ServerAuth => 1,
            Self::ClientAuth => 2,
            Self::CodeSigning => 3,
            Self::EmailProtection => 4,
            Self::TimeStamping => 8,
        };
        [1, 3, 6, 1, 5, 5, 7, 3, last]
    }
}

/// The rules of a profile.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileRules {
    /// Whether the profile may be used at all.
    pub enabled: bool,
    /// Keys it takes; one rule must fit. Empty takes any safe key.
    pub keys: Vec<KeyRule>,
    /// Longest lifetime; zero for no limit of its own.
    pub max_ttl: Duration,
    /// Usages put into certificates; empty means `serverAuth`.
    pub ekus: Vec<ExtendedKeyUsage>,
    /// Regular expressions; each must match the whole of at least one name.
    pub required_san_patterns: Vec<String>,
    /// Regular expression for the whole of each SPIFFE id, of which one must then be there; empty: not asked.
    pub spiffe_uri_pattern: String,
    /// Whether lifetimes under an hour are meant, which need no publication of revocations.
    pub allow_short_lived: bool,
}

/// The smallest sizes that any profile accepts.
const SAFE: [(KeyAlgorithm, u32); 3] = [
    (KeyAlgorithm::Rsa, 2048),
    (KeyAlgorithm::Ecdsa, 256),
    (KeyAlgorithm::Ed25519, 256),
];

impl Default for ProfileRules {
    /// What holds for a certificate without a profile.
    fn default() -> Self {
        Self {
            enabled: true,
            keys: vec![],
            max_ttl: Duration::ZERO,
            ekus: vec![ExtendedKeyUsage::ServerAuth],
            required_san_patterns: vec![],
            spiffe_uri_pattern: String::new(),
            allow_short_lived: false,
        }
    }
}

impl ProfileRules {
    /// Checks that the rules themselves make sense.
    ///
    /// # Errors
    /// The field and what would be right.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for rule in &self.keys {
            let Some((_, least)) = SAFE.iter().find(|(a, _)| *a == rule.algorithm) else {
                let text = format!("no certificate is issued for {} keys", rule.algorithm);
                return Err(("allowed_key_algorithms", text));
            };
            if rule.min_size != 0 && rule.min_size < *least {
                let text = format!(
                    "min_size of {} is at least {least}, not {}",
                    rule.algorithm, rule.min_size
                );
                return Err(("allowed_key_algorithms", text));
            }
        }
        if self.allow_short_lived && self.max_ttl >= Duration::from_secs(3600) {
            let text = "a short-lived profile needs a max_ttl_seconds below 3600".to_owned();
            return Err(("max_ttl_seconds", text));
        }
        self.check_purposes().map_err(|why| ("allowed_ekus", why))?;
        for pattern in &self.required_san_patterns {
            whole(pattern).map_err(|e| ("required_san_patterns", e))?;
        }
        if !self.spiffe_uri_pattern.is_empty() {
            whole(&self.spiffe_uri_pattern).map_err(|e| ("spiffe_uri_pattern", e))?;
        }
        Ok(())
    }

    /// The usages that are put into certificates, as dotted object identifiers.
    pub fn purposes(&self) -> Vec<String> {
        let ekus = match self.ekus.as_slice() {
            [] => &[ExtendedKeyUsage::ServerAuth],
            ekus => ekus,
        };
        let dotted = |usage: &ExtendedKeyUsage| usage.arcs().map(|arc| arc.to_string()).join(".");
        let mut purposes: Vec<String> = ekus.iter().map(dotted).collect();
        purposes.sort();
        purposes.dedup();
        purposes
    }

    /// Whether the usages can stand in one certificate.
    ///
    /// # Errors
    /// What would be right.
    pub fn check_purposes(&self) -> Result<(), String> {
        let others = self.ekus.iter().any(|usage| *usage != ExtendedKeyUsage::TimeStamping);
        match self.ekus.contains(&ExtendedKeyUsage::TimeStamping) && others {
            true => Err(
                "timeStamping stands alone in a certificate (RFC 3161 §2.3); give it a profile of its own".to_owned(),
            ),
            false => Ok(()),
        }
    }

    /// The key an agent should make: P-256 if that fits, else the smallest the rules take.
    pub fn preferred_key(&self) -> KeyFacts {
        if self.keys.is_empty() || self.admits_key(KeyFacts::P256).is_ok() {
            return KeyFacts::P256;
        }
        let rule = self.keys[0];
        let sizes: &[u32] = match rule.algorithm {
            KeyAlgorithm::Rsa => &[2048, 3072, 4096],
            KeyAlgorithm::Ecdsa => &[256, 384],
            KeyAlgorithm::Ed25519 => &[256],
            KeyAlgorithm::RsaPss | KeyAlgorithm::Dsa | KeyAlgorithm::Other => &[],
        };
        let bits = sizes
            .iter()
            .copied()
            .find(|s| *s >= rule.min_size)
            .unwrap_or(rule.min_size);
        KeyFacts {
            algorithm: rule.algorithm,
            bits,
        }
    }

    /// Whether a key fits.
    ///
    /// # Errors
    /// What the key is and which ones would fit.
    pub fn admits_key(&self, key: KeyFacts) -> Result<(), String> {
        let safe = SAFE.iter().any(|(a, least)| *a == key.algorithm && key.bits >= *least);
        let fits = self.keys.is_empty()
            || self
                .keys
                .iter()
                .any(|rule| rule.algorithm == key.algorithm && key.bits >= rule.min_size);
        if safe && fits {
            return Ok(());
        }
        let rules: Vec<(KeyAlgorithm, u32)> = if self.keys.is_empty() {
            SAFE.to_vec()
        } else {
            self.keys
                .iter()
                .map(|rule| (rule.algorithm, rule.min_size.max(safe_size(rule.algorithm))))
                .collect()
        };
        let wanted: Vec<String> = rules
            .iter()
            .map(|(a, size)| format!("{a} of at least {size} bits"))
            .collect();
        Err(format!(
            "the key is {} of {} bits; the profile takes {}",
            key.algorithm,
            key.bits,
            wanted.join(" or ")
        ))
    }

    /// Whether a certificate for these names may be issued with this key.
    ///
    /// # Errors
    /// The first rule it breaks, as text for a person.
    pub fn admits(&self, key: KeyFacts, names: &[San]) -> Result<(), String> {
        self.admits_key(key)?;
        self.admits_names(names)
    }

    /// Whether a certificate for these names may be issued at all.
    ///
    /// # Errors
    /// The first rule they break, as text for a person.
    pub fn admits_names(&self, names: &[San]) -> Result<(), String> {
        if !self.enabled {
            return Err("the profile is disabled".to_owned());
        }
        if let Some(name) = names.iter().find(|name| !name.is_certifiable()) {
            return Err(format!(
                "\"{name}\" is not a name that can be certified; edit the names"
            ));
        }
        name::together(names)?;
        for pattern in &self.required_san_patterns {
            let pattern_re = whole(pattern)?;
            if !names.iter().any(|name| pattern_re.is_match(&name.to_string())) {
                return Err(format!(
                    "no name matches the pattern {pattern} that the profile requires"
                ));
            }
        }
        let spiffe: Vec<&San> = names.iter().filter(|name| name.is_spiffe()).collect();
        if !self.spiffe_uri_pattern.is_empty() {
            let pattern = whole(&self.spiffe_uri_pattern)?;
            for id in &spiffe {
                if !pattern.is_match(&id.to_string()) {
                    return Err(format!(
                        "{id} does not match the SPIFFE pattern {}",
                        self.spiffe_uri_pattern
                    ));
                }
            }
            if spiffe.is_empty() {
                return Err(format!(
                    "the profile requires a SPIFFE id matching {}",
                    self.spiffe_uri_pattern
                ));
            }
        }
        Ok(())
    }
}

fn safe_size(algorithm: KeyAlgorithm) -> u32 {
    SAFE.iter()
        .find(|(a, _)| *a == algorithm)
        .map_or(u32::MAX, |(_, least)| *least)
}

/// Compiles a pattern that has to match the whole of a name. Linear in time and bounded in memory by construction.
fn whole(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(1 << 18)
        .build()
        .map_err(|_| format!("{pattern} is not a regular expression that can be used"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(algorithm: KeyAlgorithm, bits: u32) -> KeyFacts {
        KeyFacts { algorithm, bits }
    }

    #[test]
    fn a_key_must_fit_one_rule_and_be_safe() {
        let strict = ProfileRules {
            keys: vec![
                KeyRule {
                    algorithm: KeyAlgorithm::Ecdsa,
                    min_size: 384,
                },
                KeyRule {
                    algorithm: KeyAlgorithm::Rsa,
                    min_size: 0,
                },
            ],
            ..Default::default()
        };
        for (rules, key, fits) in [
            (&ProfileRules::default(), key(KeyAlgorithm::Ecdsa, 256), true),
            (&ProfileRules::default(), key(KeyAlgorithm::Rsa, 1024), false),
            (&ProfileRules::default(), key(KeyAlgorithm::Ecdsa, 224), false),
            (&strict, key(KeyAlgorithm::Ecdsa, 256), false),
            (&strict, key(KeyAlgorithm::Ecdsa, 384), true),
            (&strict, key(KeyAlgorithm::Rsa, 1024), false),
            (&strict, key(KeyAlgorithm::Rsa, 2048), true),
            (&strict, key(KeyAlgorithm::Ed25519, 256), false),
        ] {
            assert_eq!(rules.admits_key(key).is_ok(), fits, "{key}");
        }
        assert_eq!(strict.preferred_key(), key(KeyAlgorithm::Ecdsa, 384));
        assert_eq!(
            strict.admits_key(key(KeyAlgorithm::Rsa, 1024)).unwrap_err(),
            "the key is RSA of 1024 bits; the profile takes ECDSA of at least 384 bits or RSA of at least 2048 bits"
        );
    }

    #[test]
    fn required_names_and_spiffe_ids_are_matched_whole() {
        let rules = ProfileRules {
            required_san_patterns: vec![r".*\.prod\.example\.com".into()],
            spiffe_uri_pattern: "spiffe://example.org/.+".into(),
            ..Default::default()
        };
        let names = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<San>>();
        for (list, fits) in [
            (&["a.prod.example.com", "spiffe://example.org/x"][..], true),
            (&["a.prod.example.com"][..], false),
            (&["a.prod.example.com.evil.net", "spiffe://example.org/x"][..], false),
            (&["a.prod.example.com", "spiffe://evil.org/x"][..], false),
        ] {
            assert_eq!(rules.admits_names(&names(list)).is_ok(), fits, "{list:?}");
        }
    }

    #[test]
    fn rules_that_make_no_sense_are_refused_by_field() {
        let field = |rules: ProfileRules| rules.check().unwrap_err().0;
        let weak = vec![KeyRule {
            algorithm: KeyAlgorithm::Rsa,
            min_size: 1024,
        }];
        assert_eq!(
            field(ProfileRules {
                keys: weak,
                ..Default::default()
            }),
            "allowed_key_algorithms"
        );
        let long = Duration::from_secs(3600);
        let short = ProfileRules {
            allow_short_lived: true,
            max_ttl: long,
            ..Default::default()
        };
        assert_eq!(field(short), "max_ttl_seconds");
        let open = ProfileRules {
            required_san_patterns: vec!["(".into()],
            ..Default::default()
        };
        assert_eq!(field(open), "required_san_patterns");
    }
}
