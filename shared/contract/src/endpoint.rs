//! What an operation is, and the table that declares a resource's.

use std::{marker::PhantomData, time::Duration};

use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::query::{self, Invalid, Param, PathParams, Query};

/// Who may call an operation. A row without one does not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone.
    Open,
    /// Anyone with a valid key.
    Anyone,
    /// The agent named in the path, or a party that may [`Permission::Operate`].
    Agent,
    /// The agent named in the path: with its own key, or the shared key, which earlier agents use.
    AgentItself,
    /// A party that wants to become an agent: holder of the bootstrap token, or who may configure.
    Bootstrap,
    /// Whoever holds the permission.
    Needs(Permission),
}

certctl_model::words! {
    /// What a party may do.
    pub enum Permission {
        /// Read the inventory.
        View = "view",
        /// Create certificates and renew them.
        Request = "request",
        /// Request, renew, deploy; change certificates.
        Operate = "operate",
        /// Revoke.
        Revoke = "revoke",
        /// Let an issuance go on that waits for a second person, or not.
        Approve = "approve",
        /// Change issuers, profiles, policies, targets, owners.
        Configure = "configure",
        /// Read the trail.
        Audit = "audit",
        /// Make and revoke API keys.
        Administer = "administer",
    }
}

certctl_model::words! {
    /// What a party is, and so what it may do.
    pub enum Role {
        /// Everything.
        Admin = "admin",
        /// The daily work: request, renew, deploy, revoke, approve.
        Operator = "operator",
        /// Reading the inventory.
        Viewer = "viewer",
        /// Reading the inventory and the trail.
        Auditor = "auditor",
        /// Creating certificates, and reading and renewing those that it created.
        Requester = "requester",
        /// Reading the inventory, and approving.
        Approver = "approver",
        /// The paths of one agent, and nothing else.
        Agent = "agent",
    }
}

certctl_model::words! {
    /// How an operation treats a party that reaches only some certificates: one whose key or role has a scope, or whose
    /// role is `requester`. A row that states nothing refuses such a party.
    pub enum Scoping {
        /// Refused: it concerns what belongs to no single certificate, or nobody has said how it is limited.
        Refused = "refused",
        /// Not limited: it concerns the caller alone.
        Caller = "caller",
        /// The path names a certificate within reach; any other is a 404.
        Certificate = "certificate",
        /// The path names a job of a certificate within reach; any other is a 404.
        Job = "job",
        /// It answers with what belongs to certificates within reach, and nothing else.
        Rows = "rows",
        /// It changes certificates within reach: one that does not reach them afterwards is a 403.
        Change = "change",
    }
}

impl Role {
    /// Whether the role includes the permission.
    pub const fn may(self, permission: Permission) -> bool {
        use Permission::{Approve, Audit, Operate, Request, Revoke, View};
        match self {
            Role::Admin => true,
            Role::Operator => matches!(permission, View | Request | Operate | Revoke | Approve),
            Role::Requester => matches!(permission, View | Request),
            Role::Approver => matches!(permission, View | Approve),
            Role::Viewer => matches!(permission, View),
            Role::Auditor => matches!(permission, View | Audit),
            Role::Agent => false,
        }
    }

    /// Whether its keys may have a scope.
    pub const fn may_be_scoped(self) -> bool {
        !matches!(self, Role::Admin | Role::Agent)
    }
}

/// How much a request may send, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Small bodies and quick answers; a long poll for work is the longest.
    Ordinary,
    /// Many certificates in one body.
    Import,
    /// A large report, read while it arrives.
    Upload,
    /// A large answer, written while it is read.
    Export,
}

impl Class {
    /// Largest body, in octets.
    pub const fn body_limit(self) -> u64 {
        match self {
            Class::Ordinary | Class::Export => 1 << 20,
            Class::Import => 16 << 20,
            Class::Upload => 64 << 20,
        }
    }

    /// How long the body may take to arrive.
    pub const fn body_timeout(self) -> Duration {
        Duration::from_secs(match self {
            Class::Ordinary | Class::Export => 30,
            Class::Import => 120,
            Class::Upload => 600,
        })
    }

    /// How long everything may take until the head of the answer.
    pub const fn answer_timeout(self) -> Duration {
        Duration::from_secs(match self {
            Class::Ordinary | Class::Export => 90,
            Class::Import => 240,
            Class::Upload => 900,
        })
    }

    /// How long the body of a streamed answer may take.
    pub const fn stream_timeout(self) -> Duration {
        Duration::from_secs(3600)
    }
}

/// One operation as a type.
pub trait Endpoint: Send + Sync + 'static {
    /// The name of the row, in camel case.
    const NAME: &'static str;
    /// The method.
    const METHOD: Method;
    /// The first part of the path, common to the resource.
    const BASE: &'static str;
    /// What follows, with `{placeholders}`.
    const REST: &'static str;
    /// The status of success.
    const STATUS: u16;
    /// Who may call it.
    const ACCESS: Access;
    /// How it treats a party that reaches only some certificates.
    const SCOPING: Scoping;
    /// How much it may send, and how long it may take.
    const CLASS: Class;
    /// Parameters in the path.
    type Path: PathParams;
    /// Parameters in the query.
    type Query: Query;
    /// The request's body.
    type Body: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// The answer's body.
    type Reply: Reply;

    /// The path with placeholders.
    fn path() -> String {
        format!("{}{}", Self::BASE, Self::REST)
    }
}

/// What an operation answers with.
pub trait Reply: Sized + Send + 'static {
    /// The media types it can have; none for an empty body.
    const CONTENT_TYPES: &'static [&'static str];

    /// Its JSON Schema, when it is JSON.
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema>;

    /// Its octets.
    fn encode(&self) -> Vec<u8>;

    /// Reads the octets.
    ///
    /// # Errors
    /// When they are not such an answer.
    fn decode(octets: &[u8]) -> Result<Self, serde_json::Error>;

    /// Its `Cache-Control`, when it has one.
    fn cache_control(&self) -> Option<&str> {
        None
    }

    /// Its `Set-Cookie`, when it has one.
    fn set_cookie(&self) -> Option<&str> {
        None
    }

    /// Its media type.
    fn content_type(&self) -> Option<&str> {
        Self::CONTENT_TYPES.first().copied()
    }

    /// Its file name, when it is a file.
    fn file_name(&self) -> Option<&str> {
        None
    }

    /// Reads the octets, knowing the media type and the file name that came with them.
    ///
    /// # Errors
    /// When they are not such an answer.
    fn receive(octets: Vec<u8>, _content_type: &str, _file_name: Option<&str>) -> Result<Self, serde_json::Error> {
        Self::decode(&octets)
    }
}

impl<T: Serialize + DeserializeOwned + JsonSchema + Send + 'static> Reply for T {
    const CONTENT_TYPES: &'static [&'static str] = &["application/json"];

    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<T>())
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("representations are plain data")
    }

    fn decode(octets: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(octets)
    }
}

/// No body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoContent;

impl Reply for NoContent {
    const CONTENT_TYPES: &'static [&'static str] = &[];

    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }

    fn encode(&self) -> Vec<u8> {
        vec![]
    }

    fn decode(_: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(NoContent)
    }
}

/// A DER CRL (RFC 5280 §5).
#[derive(Clone, Debug)]
pub struct CrlDer {
    /// DER.
    pub der: Vec<u8>,
    /// How long it may be kept: `Cache-Control`.
    pub cache: Option<String>,
}

/// A DER OCSP response (RFC 6960 §4.2).
#[derive(Clone, Debug)]
pub struct OcspDer {
    /// DER.
    pub der: Vec<u8>,
    /// How long it may be kept: `Cache-Control`.
    pub cache: Option<String>,
}

macro_rules! der {
    ($name:ident, $media:literal) => {
        impl Reply for $name {
            const CONTENT_TYPES: &'static [&'static str] = &[$media];

            fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
                None
            }

            fn encode(&self) -> Vec<u8> {
                self.der.clone()
            }

            fn decode(octets: &[u8]) -> Result<Self, serde_json::Error> {
                Ok(Self {
                    der: octets.to_vec(),
                    cache: None,
                })
            }

            fn cache_control(&self) -> Option<&str> {
                self.cache.as_deref()
            }
        }
    };
}
der!(CrlDer, "application/pkix-crl");
der!(OcspDer, "application/ocsp-response");

/// The media types of a kind of [`File`].
pub trait Media: Send + Sync + 'static {
    /// All of them, the usual one first.
    const TYPES: &'static [&'static str];
}

/// A file: octets with a media type and a name of their own. Declared as `File<Pem>` in the table, where `Pem` is a
/// [`Media`]. A handler answers with a whole one, or streams it.
#[derive(Clone, PartialEq, Eq)]
pub struct File<M> {
    /// Its media type, parameters included.
    pub content_type: String,
    /// Its name, ASCII without quotes.
    pub name: String,
    /// What is in it.
    pub octets: Vec<u8>,
    media: PhantomData<fn() -> M>,
}

impl<M> std::fmt::Debug for File<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "File({}, {}, {} octets)",
            self.content_type,
            self.name,
            self.octets.len()
        )
    }
}

impl<M: Media> File<M> {
    /// A file of this media type and name.
    pub fn new(content_type: impl Into<String>, name: impl Into<String>, octets: Vec<u8>) -> Self {
        Self {
            content_type: content_type.into(),
            name: name.into(),
            octets,
            media: PhantomData,
        }
    }
}

impl<M: Media> Reply for File<M> {
    const CONTENT_TYPES: &'static [&'static str] = M::TYPES;

    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }

    fn encode(&self) -> Vec<u8> {
        self.octets.clone()
    }

    fn decode(octets: &[u8]) -> Result<Self, serde_json::Error> {
        Self::receive(octets.to_vec(), M::TYPES.first().copied().unwrap_or_default(), None)
    }

    fn cache_control(&self) -> Option<&str> {
        Some("no-store")
    }

    fn content_type(&self) -> Option<&str> {
        Some(&self.content_type)
    }

    fn file_name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn receive(octets: Vec<u8>, content_type: &str, file_name: Option<&str>) -> Result<Self, serde_json::Error> {
        Ok(Self::new(content_type, file_name.unwrap_or_default(), octets))
    }
}

/// A request without a body; whatever is sent is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoBody;

impl Serialize for NoBody {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        serde_json::Map::new().serialize(s)
    }
}

impl<'de> Deserialize<'de> for NoBody {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(d).map(|_| NoBody)
    }
}

impl JsonSchema for NoBody {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NoBody".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "object" })
    }
}

/// The parameters of a query, decoded.
pub type Pairs = Vec<(String, String)>;

/// One operation as data.
#[derive(Clone)]
pub struct Operation {
    /// The name of the row, in camel case.
    pub name: &'static str,
    /// The resource it belongs to.
    pub tag: &'static str,
    /// The method.
    pub method: Method,
    base: &'static str,
    rest: &'static str,
    /// The status of success.
    pub status: u16,
    /// Its description: the first line is the summary.
    pub doc: &'static str,
    /// Who may call it.
    pub access: Access,
    /// How it treats a party that reaches only some certificates.
    pub scoping: Scoping,
    /// Parameters in the path.
    pub path_params: fn() -> Vec<Param>,
    /// Parameters in the query.
    pub query_params: fn() -> Vec<Param>,
    /// Schema of the request's body; none when it takes none.
    pub body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// How much it may send, and how long it may take.
    pub class: Class,
    /// Media types of the answer.
    pub content_types: &'static [&'static str],
    /// Schema of the answer, when it is JSON.
    pub reply: fn(&mut SchemaGenerator) -> Option<Schema>,
    /// Reads parameters of a query as the server does, and says what is wrong with them.
    pub check_query: fn(Pairs) -> Result<(), Vec<Invalid>>,
    /// Reads a body as the server does, and says what is wrong with it.
    pub check_body: fn(&[u8]) -> Result<(), serde_json::Error>,
}

impl Operation {
    /// Reads a row.
    pub fn of<E: Endpoint>(tag: &'static str, doc: &'static str) -> Self {
        let takes_a_body = std::any::TypeId::of::<E::Body>() != std::any::TypeId::of::<NoBody>();
        Self {
            name: E::NAME,
            tag,
            method: E::METHOD,
            base: E::BASE,
            rest: E::REST,
            status: E::STATUS,
            doc,
            access: E::ACCESS,
            scoping: E::SCOPING,
            path_params: E::Path::params,
            query_params: E::Query::params,
            body: takes_a_body.then_some(|g: &mut SchemaGenerator| g.subschema_for::<E::Body>()),
            class: E::CLASS,
            content_types: E::Reply::CONTENT_TYPES,
            reply: E::Reply::schema,
            check_query: |pairs| query::parse::<E::Query>(pairs).map(|_| ()),
            check_body: |octets| serde_json::from_slice::<E::Body>(octets).map(|_| ()),
        }
    }

    /// The name in snake case: the operation id of OpenAPI, the tool, the argument of `certctl-cli call`.
    pub fn id(&self) -> String {
        snake(self.name)
    }

    /// The path with placeholders.
    pub fn path(&self) -> String {
        format!("{}{}", self.base, self.rest)
    }

    /// Whether its answer is JSON that can be read as a whole.
    pub fn answers_with_json(&self) -> bool {
        self.content_types == ["application/json"]
    }

    /// Whether a request may carry an `Idempotency-Key`: it creates or triggers something, for a person or a program.
    pub fn is_repeatable(&self) -> bool {
        repeatable(&self.method, self.access, self.class)
    }

    /// The first line of the description, without its full stop.
    pub fn summary(&self) -> &'static str {
        self.doc.lines().next().unwrap_or("").trim().trim_end_matches('.')
    }
}

/// Whether a request of such a row may carry an `Idempotency-Key`.
pub fn repeatable(method: &Method, access: Access, class: Class) -> bool {
    let creates = matches!(access, Access::Needs(_) | Access::Bootstrap);
    *method == Method::POST && creates && !matches!(class, Class::Upload | Class::Export)
}

/// `ListTeams` as `list_teams`.
pub fn snake(camel: &str) -> String {
    let mut out = String::new();
    for (i, c) in camel.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Declares a resource: each row becomes a unit struct implementing [`Endpoint`] and an entry of `operations()`.
///
/// ```text
/// resource! { teams "/api/v1/teams";
///     /// Fetch one team.
///     GET "/{id}" GetTeam(path: Id<TeamId>,) [Needs(View)] -> 200 Team;
/// }
/// ```
///
/// A row that a party with a scope may call names its [`Scoping`] after its access: `[Needs(View), Certificate]`. A row
/// whose requests or answers are large names its [`Class`] at the end: `[Agent; Upload]`.
#[macro_export]
macro_rules! resource {
    ($tag:ident $base:literal; $(
        $(#[doc = $doc:literal])+
        $method:ident $rest:literal $name:ident
        ($(path: $path:ty,)? $(query: $query:ty,)? $(body: $body:ty,)?) [$access:ident $(($permission:ident))? $(, $scoping:ident)? $(; $class:ident)?]
        -> $status:literal $reply:ty;
    )+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl $crate::endpoint::Endpoint for $name {
                const NAME: &'static str = stringify!($name);
                const METHOD: http::Method = http::Method::$method;
                const BASE: &'static str = $base;
                const REST: &'static str = $rest;
                const STATUS: u16 = $status;
                const ACCESS: $crate::endpoint::Access =
                    $crate::endpoint::Access::$access $(($crate::endpoint::Permission::$permission))?;
                const SCOPING: $crate::endpoint::Scoping = $crate::resource!(@scoping $($scoping)?);
                const CLASS: $crate::endpoint::Class = $crate::resource!(@class $($class)?);
                type Path = $crate::resource!(@or $crate::query::NoParams $(, $path)?);
                type Query = $crate::resource!(@or $crate::query::NoParams $(, $query)?);
                type Body = $crate::resource!(@or $crate::endpoint::NoBody $(, $body)?);
                type Reply = $reply;
            }
        )+

        /// The rows of this resource.
        pub fn operations() -> Vec<$crate::endpoint::Operation> {
            vec![$($crate::endpoint::Operation::of::<$name>(
                stringify!($tag),
                concat!($($doc, "\n"),+).trim_ascii(),
            )),+]
        }
    };
    (@scoping) => { $crate::endpoint::Scoping::Refused };
    (@scoping $scoping:ident) => { $crate::endpoint::Scoping::$scoping };
    (@class) => { $crate::endpoint::Class::Ordinary };
    (@class $class:ident) => { $crate::endpoint::Class::$class };
    (@or $default:ty) => { $default };
    (@or $default:ty, $given:ty) => { $given };
}
