//! Policy rules: what certificates are held against, and where one breaks a rule.
//!
//! A rule is read from its type and settings; what is not read is refused, so that a rule never means less than its
//! author wrote. Not here: when rules are asked, and what follows.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::{Value, json};

use crate::{
    id::{IssuerId, OwnerId, ProfileId, TeamId},
    name::San,
    time::Time,
};

crate::words! {
    /// What a rule is about.
    pub enum PolicyType {
        /// Who may issue.
        AllowedIssuers = "AllowedIssuers" | "allowed_issuers",
        /// Names that may be certified.
        AllowedDomains = "AllowedDomains" | "allowed_domains",
        /// What must be known of a certificate.
        RequiredMetadata = "RequiredMetadata" | "required_metadata" | "ownership",
        /// Environments that may be named.
        AllowedEnvironments = "AllowedEnvironments" | "allowed_environments" | "environment",
        /// How long before its end a certificate is replaced, and how long it may live.
        RenewalLeadTime = "RenewalLeadTime" | "renewal_lead_time" | "renewal_window" | "lifetime",
    }
}

crate::words! {
    /// How bad it is to break a rule.
    pub enum Severity {
        /// Worth knowing.
        Warning = "Warning",
        /// Wrong.
        Error = "Error",
        /// Dangerous.
        Critical = "Critical",
    }
}

/// When rules are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A certificate is requested.
    Creation,
    /// What is known of it changed.
    Change,
    /// A new version is about to be asked for.
    Issuance,
    /// A version is about to be put on a target.
    Deployment,
    /// Certificates are looked at.
    Sweep,
}

impl Moment {
    /// Every moment.
    pub const ALL: [Self; 5] = [
        Self::Creation,
        Self::Change,
        Self::Issuance,
        Self::Deployment,
        Self::Sweep,
    ];

    /// Whether a rule of this type and severity that is broken keeps it from happening. Dates keep nothing from being
    /// issued: a new version mends them.
    pub fn is_blocked_by(self, kind: PolicyType, severity: Severity) -> bool {
        severity != Severity::Warning
            && match self {
                Self::Creation | Self::Change | Self::Deployment => true,
                Self::Issuance => kind != PolicyType::RenewalLeadTime,
                Self::Sweep => false,
            }
    }
}

crate::words! {
    /// A field that a rule can ask for.
    pub enum Field {
        /// An owner other than the one of what nobody has claimed.
        Owner = "owner_id",
        /// A team other than the one of what nobody has claimed.
        Team = "team_id",
        /// An environment.
        Environment = "environment",
        /// A profile.
        Profile = "certificate_profile_id",
    }
}

/// Entries of one list at most.
const MOST_ENTRIES: usize = 256;
/// Days before the end when a rule about renewal names none.
const LEAD_DAYS: u32 = 30;

/// A rule. A list that is not given restricts nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Rule {
    /// Who may issue.
    AllowedIssuers {
        /// The issuer is one of these.
        #[serde(
            default,
            alias = "allowed",
            deserialize_with = "entries",
            skip_serializing_if = "Vec::is_empty"
        )]
        issuers: Vec<IssuerId>,
    },
    /// Which names may be certified.
    AllowedDomains {
        /// Every name lies in one of these.
        #[serde(
            default,
            alias = "allowed",
            deserialize_with = "entries",
            skip_serializing_if = "Vec::is_empty"
        )]
        allow: Vec<Domain>,
        /// No name lies in one of these, whatever `allow` says.
        #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
        deny: Vec<Domain>,
    },
    /// What must be known; owner and team when nothing is named.
    RequiredMetadata {
        /// Fields.
        #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
        fields: Vec<Field>,
        /// Tags with a value.
        #[serde(default, deserialize_with = "entries", skip_serializing_if = "Vec::is_empty")]
        tags: Vec<Word>,
    },
    /// Which environments may be named.
    AllowedEnvironments {
        /// The environment is one of these, in any case.
        #[serde(
            default,
            alias = "environments",
            deserialize_with = "entries",
            skip_serializing_if = "Vec::is_empty"
        )]
        allowed: Vec<Word>,
    },
    /// Dates; 30 days before the end when nothing is named.
    RenewalLeadTime {
        /// A newer version is there so many days before the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_days: Option<u32>,
        /// Days from begin to end at most.
        #[serde(default, alias = "max_days", skip_serializing_if = "Option::is_none")]
        max_lifetime_days: Option<u32>,
    },
}

/// Reads a list that restricts something: an empty one would read like "none", and restrict nothing.
fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::<T>::deserialize(d)?;
    match (1..=MOST_ENTRIES).contains(&list.len()) {
        true => Ok(list),
        false => Err(D::Error::custom(format!(
            "a list has 1 to {MOST_ENTRIES} entries; leave it out to restrict nothing"
        ))),
    }
}

/// What rules are asked about.
#[derive(Clone, Debug)]
pub struct CertificateFacts {
    /// Every name, the common name first.
    pub names: Vec<San>,
    /// By whom it is issued.
    pub issuer: IssuerId,
    /// Its owner; none when nobody has claimed it.
    pub owner: Option<OwnerId>,
    /// Its team; none when nobody has claimed it.
    pub team: Option<TeamId>,
    /// Its environment; empty for none.
    pub environment: String,
    /// Its profile.
    pub profile: Option<ProfileId>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Begin and end of its newest version.
    pub validity: Option<(Time, Time)>,
}

impl Rule {
    /// Reads the settings of a rule of this type, in any spelling that clients use.
    ///
    /// # Errors
    /// What would be right.
    pub fn read(kind: PolicyType, config: &Value) -> Result<Self, String> {
        let config = if config.is_null() { &json!({}) } else { config };
        let refusal = |why: &dyn Display| format!("settings of {kind} are like {}: {why}", Self::example(kind));
        if !config.is_object() {
            return Err(refusal(&"an object is needed"));
        }
        let mut rule = Rule::deserialize(json!({ kind.as_str(): config })).map_err(|why| refusal(&why))?;
        match &mut rule {
            Rule::RequiredMetadata { fields, tags } if fields.is_empty() && tags.is_empty() => {
                *fields = vec![Field::Owner, Field::Team];
            }
            Rule::RenewalLeadTime {
                min_days: days @ None,
                max_lifetime_days: None,
            } => *days = Some(LEAD_DAYS),
            _ => {}
        }
        Ok(rule)
    }

    /// What it is about.
    pub const fn kind(&self) -> PolicyType {
        match self {
            Rule::AllowedIssuers { .. } => PolicyType::AllowedIssuers,
            Rule::AllowedDomains { .. } => PolicyType::AllowedDomains,
            Rule::RequiredMetadata { .. } => PolicyType::RequiredMetadata,
            Rule::AllowedEnvironments { .. } => PolicyType::AllowedEnvironments,
            Rule::RenewalLeadTime { .. } => PolicyType::RenewalLeadTime,
        }
    }

    /// What settings of this type look like.
    pub const fn example(kind: PolicyType) -> &'static str {
        match kind {
            PolicyType::AllowedIssuers => r#"{"issuers": ["iss-1"]}"#,
            PolicyType::AllowedDomains => r#"{"allow": ["*.example.com"], "deny": ["*.test.example.com"]}"#,
            PolicyType::RequiredMetadata => r#"{"fields": ["owner_id", "team_id"], "tags": ["cost-centre"]}"#,
            PolicyType::AllowedEnvironments => r#"{"allowed": ["production"]}"#,
            PolicyType::RenewalLeadTime => r#"{"min_days": 30, "max_lifetime_days": 90}"#,
        }
    }

    /// Its settings in their one form.
    pub fn to_value(&self) -> Value {
        let tagged = serde_json::to_value(self).expect("rules are plain data");
        let settings = tagged.as_object().and_then(|map| map.values().next());
        settings.cloned().unwrap_or_default()
    }

    /// Says how a certificate breaks the rule at this instant, if it does.
    pub fn broken_by(&self, facts: &CertificateFacts, now: Time) -> Option<String> {
        match self {
            Rule::AllowedIssuers { issuers } => (!issuers.is_empty() && !issuers.contains(&facts.issuer))
                .then(|| format!("issuer {} is not one of {}", facts.issuer, written(issuers).join(", "))),
            Rule::AllowedDomains { allow, deny } => {
                let denied = |name: &&San| deny.iter().any(|domain| domain.touches(name));
                let stray = |name: &&San| !allow.is_empty() && !allow.iter().any(|domain| domain.covers(name));
                let of = |broken: Vec<String>, why: &str| {
                    (!broken.is_empty()).then(|| format!("{why}: {}", broken.join(", ")))
                };
                let denied: Vec<_> = facts.names.iter().filter(denied).map(San::to_string).collect();
                let stray: Vec<_> = facts.names.iter().filter(stray).map(San::to_string).collect();
                of(denied, "names in a domain that is denied")
                    .or_else(|| of(stray, "names outside the domains that are allowed"))
            }
            Rule::RequiredMetadata { fields, tags } => {
                let known = |field: &Field| match field {
                    Field::Owner => facts.owner.is_some(),
                    Field::Team => facts.team.is_some(),
                    Field::Environment => !facts.environment.is_empty(),
                    Field::Profile => facts.profile.is_some(),
                };
                let tagged = |tag: &Word| facts.tags.get(&tag.0).is_some_and(|value| !value.is_empty());
                let missing: Vec<String> = fields
                    .iter()
                    .filter(|field| !known(field))
                    .map(Field::to_string)
                    .chain(tags.iter().filter(|tag| !tagged(tag)).map(|tag| format!("tag {tag}")))
                    .collect();
                (!missing.is_empty()).then(|| format!("missing: {}", missing.join(", ")))
            }
            Rule::AllowedEnvironments { allowed } => {
                let fits = allowed.iter().any(|one| one.0.eq_ignore_ascii_case(&facts.environment));
                let is = &facts.environment;
                (!allowed.is_empty() && !fits)
                    .then(|| format!("environment \"{is}\" is not one of {}", written(allowed).join(", ")))
            }
            Rule::RenewalLeadTime {
                min_days,
                max_lifetime_days,
            } => {
                const DAY: i64 = 86_400;
                let (begin, end) = facts.validity?;
                let left = end.seconds_since(now);
                let late = min_days.filter(|days| left < i64::from(*days) * DAY);
                let long = max_lifetime_days.filter(|days| end.seconds_since(begin) > i64::from(*days) * DAY);
                late.map(|days| format!("ends at {end}, in less than {days} days, and was not replaced"))
                    .or_else(|| long.map(|days| format!("lives from {begin} to {end}, longer than {days} days")))
            }
        }
    }
}

fn written<T: Display>(list: &[T]) -> Vec<String> {
    list.iter().map(T::to_string).collect()
}

/// A domain of a rule: one host or address, or with `*.` in front every name below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// Whether a name lies in it. Of e-mail addresses and URIs the host is asked.
    fn covers(&self, name: &San) -> bool {
        let host = host_of(name);
        match self.0.strip_prefix('*') {
            Some(below) => host.len() > below.len() && host.ends_with(below),
            None => host == self.0,
        }
    }

    /// Whether a name lies in it or, being a wildcard, stands for a host that does.
    fn touches(&self, name: &San) -> bool {
        let host = host_of(name);
        let stands_for = || match (host.strip_prefix("*."), self.0.split_once('.')) {
            (Some(above), Some((_, parent))) => above == parent,
            _ => false,
        };
        self.covers(name) || stands_for()
    }
}

impl TryFrom<String> for Domain {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse::<San>() {
            Ok(name @ (San::Dns(_) | San::Ip(_))) => Ok(Self(name.to_string())),
            _ => Err(format!(
                "\"{}\" is not a host, an address, or a domain like *.example.com",
                text.escape_debug()
            )),
        }
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> String {
        domain.0
    }
}

impl Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

fn host_of(name: &San) -> String {
    let text = name.to_string();
    match name {
        San::Dns(_) | San::Ip(_) | San::Foreign(_) => text,
        San::Email(_) => text.rsplit('@').next().unwrap_or_default().to_owned(),
        San::Uri(_) => {
            let authority = text.split_once("://").map_or("", |(_, rest)| rest);
            let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            // An address in brackets has colons of its own.
            let bare = host.strip_prefix('[').and_then(|rest| rest.split(']').next());
            match bare.and_then(|text| text.parse::<IpAddr>().ok()) {
                Some(address) => address.to_string(),
                None => host.split(':').next().unwrap_or_default().to_ascii_lowercase(),
            }
        }
    }
}

/// A short text of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

impl TryFrom<String> for Word {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.trim() == text && (1..=128).contains(&text.chars().count()) && !text.contains(crate::text::is_hidden)
        {
            true => Ok(Self(text)),
            false => Err("an entry has 1 to 128 characters, without control characters or spaces around it"),
        }
    }
}

impl From<Word> for String {
    fn from(word: Word) -> String {
        word.0
    }
}

impl Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: &str, config: Value) -> Rule {
        Rule::read(kind.parse().unwrap(), &config).unwrap_or_else(|why| panic!("{kind} {config}: {why}"))
    }

    fn facts(names: &[&str]) -> CertificateFacts {
        CertificateFacts {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            issuer: "iss-local".parse().unwrap(),
            owner: None,
            team: Some("t-1".parse().unwrap()),
            environment: "production".to_owned(),
            profile: None,
            tags: BTreeMap::from([
                ("cost-centre".to_owned(), "42".to_owned()),
                ("empty".to_owned(), String::new()),
            ]),
            validity: Some((Time::from_unix(0), Time::from_unix(90 * 86_400))),
        }
    }

    #[test]
    fn every_spelling_of_settings_is_read_into_one() {
        for (kind, given, kept) in [
            ("AllowedIssuers", json!(null), json!({})),
            (
                "AllowedIssuers",
                json!({ "allowed": ["iss-1"] }),
                json!({ "issuers": ["iss-1"] }),
            ),
            ("AllowedDomains", json!({}), json!({})),
            (
                "alloweddomains",
                json!({ "allowed": ["*.Example.com", "10.0.0.1"], "deny": ["x.example.com"] }),
                json!({ "allow": ["*.example.com", "10.0.0.1"], "deny": ["x.example.com"] }),
            ),
            ("ownership", json!({}), json!({ "fields": ["owner_id", "team_id"] })),
            (
                "RequiredMetadata",
                json!({ "tags": ["cost-centre"] }),
                json!({ "tags": ["cost-centre"] }),
            ),
            (
                "environment",
                json!({ "environments": ["prod"] }),
                json!({ "allowed": ["prod"] }),
            ),
            ("renewal_window", json!({}), json!({ "min_days": 30 })),
            (
                "lifetime",
                json!({ "max_days": 90 }),
                json!({ "max_lifetime_days": 90 }),
            ),
        ] {
            let rule = rule(kind, given);
            assert_eq!(rule.to_value(), kept, "{kind}");
            assert_eq!(
                Rule::read(kind.parse().unwrap(), &kept),
                Ok(rule),
                "{kind}: its own form is read again"
            );
        }
    }

    #[test]
    fn settings_that_would_mean_less_than_they_say_are_refused_with_what_is_right() {
        for (kind, bad) in [
            (PolicyType::AllowedIssuers, json!([])),
            (PolicyType::AllowedIssuers, json!({ "issuers": [] })),
            (PolicyType::AllowedIssuers, json!({ "issuers": "iss-1" })),
            (PolicyType::AllowedIssuers, json!({ "issuers": ["a b"] })),
            (
                PolicyType::AllowedIssuers,
                json!({ "issuers": ["a"], "allowed": ["b"] }),
            ),
            (PolicyType::AllowedDomains, json!({ "issuers": ["iss-1"] })),
            (PolicyType::AllowedDomains, json!({ "deny": ["a@example.com"] })),
            (PolicyType::AllowedDomains, json!({ "deny": ["a b"] })),
            (PolicyType::RequiredMetadata, json!({ "fields": ["colour"] })),
            (PolicyType::RequiredMetadata, json!({ "tags": [""] })),
            (PolicyType::AllowedEnvironments, json!({ "allowed": vec!["x"; 257] })),
            (PolicyType::RenewalLeadTime, json!({ "min_days": -1 })),
            (PolicyType::RenewalLeadTime, json!({ "min_days": "30" })),
        ] {
            let why = Rule::read(kind, &bad).expect_err(&bad.to_string());
            assert!(why.contains(Rule::example(kind)), "{why}");
        }
        for kind in PolicyType::ALL {
            let example = serde_json::from_str(Rule::example(*kind)).unwrap();
            assert_ne!(rule(kind.as_str(), example).to_value(), json!({}), "{kind}");
        }
    }

    #[test]
    fn a_rule_says_how_it_is_broken_and_is_silent_when_it_is_not() {
        let day = |n: i64| Time::from_unix(n * 86_400);
        for (kind, config, names, at, broken) in [
            ("AllowedIssuers", json!({}), &["a.example.com"][..], day(1), None),
            (
                "AllowedIssuers",
                json!({ "issuers": ["iss-local"] }),
                &["a.example.com"],
                day(1),
                None,
            ),
            (
                "AllowedIssuers",
                json!({ "issuers": ["iss-1"] }),
                &["a.example.com"],
                day(1),
                Some("iss-local"),
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["*.example.com"] }),
                &["a.b.example.com", "*.example.com"],
                day(1),
                None,
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["*.example.com"] }),
                &["example.com"],
                day(1),
                Some("outside"),
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["*.example.com"] }),
                &["a.example.com", "badexample.com"],
                day(1),
                Some("badexample.com"),
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["example.com"] }),
                &["a@example.com", "https://example.com:8443/x"],
                day(1),
                None,
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["example.com"] }),
                &["https://example.com@evil.net/"],
                day(1),
                Some("evil.net"),
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["10.0.0.1", "2001:db8::1"] }),
                &["10.0.0.1", "2001:DB8:0::1", "https://[2001:db8::1]:443/"],
                day(1),
                None,
            ),
            (
                "AllowedDomains",
                json!({ "allow": ["*.example.com"], "deny": ["*.test.example.com"] }),
                &["x.test.example.com"],
                day(1),
                Some("denied"),
            ),
            (
                "AllowedDomains",
                json!({ "deny": ["secret.example.com"] }),
                &["*.example.com"],
                day(1),
                Some("denied"),
            ),
            (
                "AllowedDomains",
                json!({ "deny": ["a.secret.example.com"] }),
                &["*.example.com"],
                day(1),
                None,
            ),
            (
                "RequiredMetadata",
                json!({}),
                &["a.example.com"],
                day(1),
                Some("owner_id"),
            ),
            (
                "RequiredMetadata",
                json!({ "fields": ["team_id", "environment"], "tags": ["cost-centre"] }),
                &["a.example.com"],
                day(1),
                None,
            ),
            (
                "RequiredMetadata",
                json!({ "tags": ["empty"] }),
                &["a.example.com"],
                day(1),
                Some("tag empty"),
            ),
            (
                "RequiredMetadata",
                json!({ "fields": ["certificate_profile_id"] }),
                &["a.example.com"],
                day(1),
                Some("certificate_profile_id"),
            ),
            (
                "AllowedEnvironments",
                json!({ "allowed": ["Production"] }),
                &["a.example.com"],
                day(1),
                None,
            ),
            (
                "AllowedEnvironments",
                json!({ "allowed": ["staging"] }),
                &["a.example.com"],
                day(1),
                Some("staging"),
            ),
            (
                "RenewalLeadTime",
                json!({ "min_days": 30 }),
                &["a.example.com"],
                day(60),
                None,
            ),
            (
                "RenewalLeadTime",
                json!({ "min_days": 30 }),
                &["a.example.com"],
                day(61),
                Some("30 days"),
            ),
            (
                "RenewalLeadTime",
                json!({ "min_days": 30 }),
                &["a.example.com"],
                day(100),
                Some("30 days"),
            ),
            (
                "RenewalLeadTime",
                json!({ "max_lifetime_days": 90 }),
                &["a.example.com"],
                day(89),
                None,
            ),
            (
                "RenewalLeadTime",
                json!({ "max_lifetime_days": 47 }),
                &["a.example.com"],
                day(1),
                Some("47 days"),
            ),
        ] {
            let said = rule(kind, config.clone()).broken_by(&facts(names), at);
            match broken {
                None => assert_eq!(said, None, "{kind} {config} {names:?}"),
                Some(word) => assert!(
                    said.as_deref().is_some_and(|said| said.contains(word)),
                    "{config} {names:?}: {said:?}"
                ),
            }
        }
        let unissued = CertificateFacts {
            validity: None,
            ..facts(&["a.example.com"])
        };
        assert_eq!(rule("RenewalLeadTime", json!({})).broken_by(&unissued, day(1)), None);
    }
}
