//! CRLs as they are stored (RFC 5280 §4.2.1.13): full ones, shards and deltas, in chunks that are read one at a time.
//!
//! The octets of a CRL never change, so a part of one is as good as the whole (RFC 9110 §14). Short ones are packed for
//! clients that take it; of a long one packing would cost more than it saves, because serial numbers are random.

use std::{
    io::Write,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use certctl_contract::problem::Kind;
use certctl_model::time::Time;
use certctl_store::crls::{List, Scope};
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use quick_cache::{Weighter, sync::Cache};
use sqlx::PgPool;

use super::{fails_precondition, has_already, http_date, kept_for, known, read_http_date};
use crate::{
    access_log::RequestId,
    app::{App, broken_off},
    error::ApiError,
};

/// The longest that is packed, in octets.
const PACKED: u64 = 4 << 20;
/// The longest that is read at once.
const WHOLE: u64 = 1 << 20;

/// A CRL as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
struct Stored {
    body: i64,
    length: i64,
    digest: Vec<u8>,
    this_update: Time,
    next_update: Time,
}

pub(super) async fn full(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let issuer = super::issuer_of(&file, ".crl")?;
        serve(&app, &List::full(issuer), &headers).await
    };
    answer
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

/// `delta.crl`, and a shard by its number.
pub(super) async fn part(
    State(app): State<Arc<App>>,
    id: axum::Extension<RequestId>,
    Path((issuer, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let list = issuer.parse().ok().zip(scope_of(&file));
        let (issuer, scope) = list.ok_or_else(|| {
            let what = "the path is that of an issuer's id and delta.crl, or the number of a shard and .crl";
            ApiError::new(Kind::NotFound, what.to_owned())
        })?;
        serve(&app, &List { issuer, scope }, &headers).await
    };
    answer
        .await
        .unwrap_or_else(|error| error.into_problem(&id.0).into_response())
}

fn scope_of(file: &str) -> Option<Scope> {
    match file.strip_suffix(".crl")? {
        "delta" => Some(Scope::Delta),
        number if number.starts_with(|first| matches!(first, '1'..='9')) => number.parse().ok().map(Scope::Shard),
        _ => None,
    }
}

/// The newest of a list, or the part of it that was asked for.
///
/// # Errors
/// 404 for an issuer we do not know or a list that it does not have; 416 for a part that it does not have; 503 when the
/// newest has ended: an old list is not served as if it were current.
pub async fn serve(app: &App, list: &List, asked: &HeaderMap) -> Result<Response, ApiError> {
    let crl = newest(app, list).await?;
    let (length, packable) = (crl.length.unsigned_abs(), crl.length.unsigned_abs() <= PACKED);
    let mark = hex::encode(&crl.digest[..crl.digest.len().min(16)]);
    let plain = format!("\"{mark}\"");
    let part = part_of(asked, &plain, crl.this_update, length);
    let packed = part.is_none() && packable && takes_gzip(asked);
    let etag = if packed { format!("\"{mark}-gzip\"") } else { plain };
    // A revocation must be seen within a minute: caches ask again twice in it, and are told cheaply of no change.
    let age = crl.next_update.since(app.clock.now()).min(Duration::from_secs(30));
    let mut answer = vec![
        (header::ETAG, etag.clone()),
        (header::LAST_MODIFIED, http_date(crl.this_update)),
        (header::CACHE_CONTROL, kept_for(age)),
        (header::VARY, "accept-encoding".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if fails_precondition(asked, &etag, crl.this_update) {
        return Ok(response(StatusCode::PRECONDITION_FAILED, answer, Body::empty()));
    }
    if has_already(asked, || &etag, crl.this_update) {
        return Ok(response(StatusCode::NOT_MODIFIED, answer, Body::empty()));
    }
    let chunks = Chunks::of(app.pool.clone(), list, crl.body);
    let (status, body) = match part {
        None if packed => {
            let octets = app.packed.of(&crl.digest, &chunks, length).await?;
            answer.push((header::CONTENT_ENCODING, "gzip".to_owned()));
            answer.push((header::CONTENT_LENGTH, octets.len().to_string()));
            (StatusCode::OK, Body::from(octets))
        }
        None => {
            answer.push((header::CONTENT_LENGTH, length.to_string()));
            let body = match length <= WHOLE {
                true => Body::from(chunks.whole(length).await?),
                false => Body::from_stream(chunks.stream(0, 0..length).map_err(broken_off)),
            };
            (StatusCode::OK, body)
        }
        Some(None) => {
            answer.push((header::CONTENT_RANGE, format!("bytes */{length}")));
            (StatusCode::RANGE_NOT_SATISFIABLE, Body::empty())
        }
        Some(Some(part)) => {
            let (first, range) = chunks.locate(&part).await?;
            let content = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            answer.push((header::CONTENT_RANGE, content));
            answer.push((header::CONTENT_LENGTH, (part.end - part.start).to_string()));
            (
                StatusCode::PARTIAL_CONTENT,
                Body::from_stream(chunks.stream(first, range).map_err(broken_off)),
            )
        }
    };
    if status != StatusCode::RANGE_NOT_SATISFIABLE {
        answer.push((header::CONTENT_TYPE, "application/pkix-crl".to_owned()));
    }
    Ok(response(status, answer, body))
}

fn response(status: StatusCode, headers: Vec<(HeaderName, String)>, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).expect("is printable ASCII");
        response.headers_mut().insert(name, value);
    }
    response
}

async fn newest(app: &App, list: &List) -> Result<Stored, ApiError> {
    let crl: Option<Stored> = sqlx::query_as(
        "SELECT body, length, digest, this_update, next_update
           FROM crls WHERE issuer_id = $1 AND shard = $2 AND (base IS NOT NULL) = $3
          ORDER BY number DESC LIMIT 1",
    )
    .bind(&list.issuer)
    .bind(list.shard())
    .bind(list.scope == Scope::Delta)
    .fetch_optional(&app.pool)
    .await?;
    match crl {
        Some(crl) if crl.next_update > app.clock.now() => Ok(crl),
        Some(crl) => Err(ApiError::unavailable(format!(
            "the newest of {list} ended at {}",
            crl.next_update
        ))),
        None => {
            known(app, &list.issuer).await?;
            Err(ApiError::new(Kind::NotFound, format!("there is nothing yet of {list}")))
        }
    }
}

/// The part that is asked for, from its first octet to behind its last: nothing when the whole is, and nothing within
/// when there is no such part. Several parts are answered with the whole (RFC 9110 §14.2), and so is one of another
/// CRL than this (§13.1.5).
fn part_of(asked: &HeaderMap, etag: &str, modified: Time, length: u64) -> Option<Option<Range<u64>>> {
    let text = |name| asked.get(name).and_then(|value| value.to_str().ok());
    let (first, last) = text(header::RANGE)?.strip_prefix("bytes=")?.split_once('-')?;
    if let Some(of) = text(header::IF_RANGE)
        && of != etag
        && read_http_date(of) != Some(modified)
    {
        return None;
    }
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let part = match (first, last) {
        ("", last) => length.saturating_sub(number(last)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(length)
        }
    };
    Some((part.start < part.end).then_some(part))
}

fn takes_gzip(asked: &HeaderMap) -> bool {
    let values = asked.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight
            .trim()
            .strip_prefix("q=")
            .is_some_and(|weight| weight.parse() == Ok(0.0_f32));
        matches!(name.trim(), "gzip" | "x-gzip") && !refused
    })
}

/// CRLs in their packed form: each is packed once, however many ask at the same time. The newest few of each list are
/// asked for, so a small memory holds them.
pub struct Packed {
    kept: Cache<Vec<u8>, Bytes, Octets>,
    made: AtomicU64,
}

#[derive(Clone)]
struct Octets;

impl Weighter<Vec<u8>, Bytes> for Octets {
    fn weight(&self, key: &Vec<u8>, octets: &Bytes) -> u64 {
        (key.len() + octets.len()) as u64 + 100
    }
}

impl Default for Packed {
    fn default() -> Self {
        const OCTETS: u64 = 64 << 20;
        /// So few that all memory is one part, which the largest fits into several times.
        const LISTS: usize = 32;
        Self {
            kept: Cache::with_weighter(LISTS, OCTETS, Octets),
            made: AtomicU64::new(0),
        }
    }
}

impl Packed {
    /// How many were packed so far.
    pub fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// The packed form of the CRL with this digest.
    async fn of(&self, digest: &[u8], chunks: &Chunks, length: u64) -> Result<Bytes, ApiError> {
        let pack = async {
            let octets = chunks.whole(length).await?;
            let packed = tokio::task::spawn_blocking(move || gzip(&octets)).await;
            let packed = packed.map_err(|error| ApiError::internal(error.to_string()))??;
            self.made.fetch_add(1, Relaxed);
            Ok(Bytes::from(packed))
        };
        self.kept.get_or_insert_async(digest, pack).await
    }
}

fn gzip(octets: &[u8]) -> Result<Vec<u8>, ApiError> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(octets.len() / 2), Compression::fast());
    let packed = encoder.write_all(octets).and_then(|()| encoder.finish());
    packed.map_err(|error| ApiError::internal(error.to_string()))
}

/// An IMF-fixdate (RFC 9110 §5.6.7); the two obsolete forms are nobody's here.
/// The octets of one CRL in the database. No connection is held while a client reads.
#[derive(Clone)]
struct Chunks {
    pool: PgPool,
    issuer: String,
    shard: i32,
    body: i64,
}

impl Chunks {
    fn of(pool: PgPool, list: &List, body: i64) -> Self {
        Self {
            pool,
            issuer: list.issuer.to_string(),
            shard: list.shard(),
            body,
        }
    }

    async fn whole(&self, length: u64) -> Result<Vec<u8>, ApiError> {
        let chunks: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT octets FROM crl_chunks WHERE issuer_id = $1 AND shard = $2 AND body = $3 ORDER BY seq",
        )
        .bind(&self.issuer)
        .bind(self.shard)
        .bind(self.body)
        .fetch_all(&self.pool)
        .await?;
        let octets = chunks.concat();
        match octets.len() as u64 == length {
            true => Ok(octets),
            // Three newer ones were made since it was looked up.
            false => Err(ApiError::unavailable(
                "the CRL was replaced while it was read; ask again",
            )),
        }
    }

    /// The chunk in which a part begins, and where the part lies from the first octet of that chunk on.
    async fn locate(&self, part: &Range<u64>) -> Result<(i32, Range<u64>), ApiError> {
        let lengths: Vec<(i32, i32)> = sqlx::query_as(
            "SELECT seq, octet_length(octets) FROM crl_chunks WHERE issuer_id = $1 AND shard = $2 AND body = $3
              ORDER BY seq",
        )
        .bind(&self.issuer)
        .bind(self.shard)
        .bind(self.body)
        .fetch_all(&self.pool)
        .await?;
        let mut before = 0;
        for (seq, length) in lengths {
            let length = u64::from(length.unsigned_abs());
            if part.start < before + length {
                return Ok((seq, part.start - before..part.end - before));
            }
            before += length;
        }
        Err(ApiError::unavailable(
            "the CRL was replaced while it was read; ask again",
        ))
    }

    /// What lies in a range, counted from the first octet of the chunk `first`. An error breaks the answer off.
    fn stream(self, first: i32, range: Range<u64>) -> BoxStream<'static, Result<Bytes, ApiError>> {
        let begin = (self, first, range);
        let chunks = stream::unfold(Some(begin), async |state| {
            let (chunks, seq, range) = state?;
            if range.end == 0 {
                return None;
            }
            match chunks.one(seq).await {
                Ok(octets) => {
                    let length = octets.len() as u64;
                    let within = range.start.min(length) as usize..range.end.min(length) as usize;
                    let rest = range.start.saturating_sub(length)..range.end.saturating_sub(length);
                    Some((Ok(octets.slice(within)), Some((chunks, seq + 1, rest))))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        chunks.boxed()
    }

    async fn one(&self, seq: i32) -> Result<Bytes, ApiError> {
        let octets: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT octets FROM crl_chunks WHERE issuer_id = $1 AND shard = $2 AND body = $3 AND seq = $4",
        )
        .bind(&self.issuer)
        .bind(self.shard)
        .bind(self.body)
        .bind(seq)
        .fetch_optional(&self.pool)
        .await?;
        octets
            .map(Bytes::from)
            .ok_or_else(|| ApiError::unavailable("the CRL was replaced while it was read; ask again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        let one = |(name, value): &(HeaderName, &str)| (name.clone(), HeaderValue::from_str(value).unwrap());
        all.iter().map(one).collect()
    }

    #[test]
    fn parts_are_single_ranges_of_this_crl() {
        let modified = Time::from_unix(784_111_777);
        for (range, if_range, part) in [
            ("bytes=0-9", None, Some(Some(0..10))),
            ("bytes=90-", None, Some(Some(90..100))),
            ("bytes=-10", None, Some(Some(90..100))),
            ("bytes=-1000", None, Some(Some(0..100))),
            ("bytes=99-1000", None, Some(Some(99..100))),
            ("bytes=100-", None, Some(None)),
            ("bytes=-0", None, Some(None)),
            ("bytes=0-9,20-29", None, None),
            ("bytes=9-0", None, None),
            ("bytes=+1-2", None, None),
            ("lines=0-9", None, None),
            ("bytes=0-9", Some("\"a\""), Some(Some(0..10))),
            ("bytes=0-9", Some("\"b\""), None),
            ("bytes=0-9", Some("W/\"a\""), None),
            ("bytes=0-9", Some("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Some(0..10))),
            ("bytes=0-9", Some("Sun, 06 Nov 1994 08:49:38 GMT"), None),
        ] {
            let mut asked = headers(&[(header::RANGE, range)]);
            if let Some(of) = if_range {
                asked.insert(header::IF_RANGE, HeaderValue::from_static(of));
            }
            assert_eq!(part_of(&asked, "\"a\"", modified, 100), part, "{range} {if_range:?}");
        }
    }

    #[test]
    fn packed_for_whom_takes_it() {
        for (value, taken) in [
            ("gzip", true),
            ("br, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.0, br", false),
            ("identity", false),
            ("*", false),
        ] {
            assert_eq!(
                takes_gzip(&headers(&[(header::ACCEPT_ENCODING, value)])),
                taken,
                "{value}"
            );
        }
    }

    #[test]
    fn lists_have_names() {
        for (file, scope) in [
            ("delta.crl", Some(Scope::Delta)),
            ("1.crl", Some(Scope::Shard(1))),
            ("128.crl", Some(Scope::Shard(128))),
            ("0.crl", None),
            ("01.crl", None),
            ("-1.crl", None),
            ("x.crl", None),
            ("1", None),
        ] {
            assert_eq!(scope_of(file), scope, "{file}");
        }
    }
}
