//! Certificates found on hosts: reports of agents, lists, and what operators decide.

use std::{collections::HashMap, io};

use bytes::{Buf, Bytes};
use certctl_contract::{
    discovery::*,
    list::{Page, Sort},
    problem::Kind,
};
use certctl_model::{
    audit::Event,
    discovery::DiscoveryStatus,
    id::{AgentId, CertificateId, DiscoveredCertificateId, DiscoveryScanId},
};
use certctl_store::{
    Tx, certificates,
    discovery::{self as store, Ending, Found, Locked, Reach},
    imports::Import,
};
use certctl_x509::{facts::CertificateFacts, pem};
use sqlx::{FromRow, Row, postgres::PgRow};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use super::transfer;
use crate::{
    app::{Cx, Request, Routes},
    body::Upload,
    error::ApiError,
    listing::{self, Column, Listed, Where},
    scan_report::{self, Piece},
};

pub(super) fn routes(r: Routes) -> Routes {
    r.on_upload(submit)
        .on(list)
        .on(get)
        .on(claim)
        .on(dismiss)
        .on(scans)
        .on(summary)
}

/// Certificates stored by one statement.
const BATCH: usize = 500;
/// Error texts of a report that are kept.
const ERRORS_KEPT: usize = 100;
/// Reports that may hold a connection to the database at a time: a report that arrives slowly keeps its own.
static WRITERS: Semaphore = Semaphore::const_new(3);

async fn submit(cx: Cx, rq: Request<SubmitDiscoveries, Upload>) -> Result<DiscoveryScan, ApiError> {
    let agent = rq.path.id;
    let known: Option<i32> = sqlx::query_scalar("SELECT 1 FROM agents WHERE id = $1")
        .bind(&agent)
        .fetch_optional(cx.pool())
        .await?;
    known.ok_or_else(|| ApiError::missing("agent", &agent))?;
    let (chunks_in, chunks) = mpsc::channel(4);
    let (pieces_in, pieces) = mpsc::channel(BATCH);
    let parser = tokio::task::spawn_blocking(move || {
        let reader = Chunks {
            chunks,
            rest: Bytes::new(),
        };
        scan_report::read(reader, |piece| {
            pieces_in.blocking_send(piece).map_err(|_| "nobody listens".to_owned())
        })
    });
    let mut report = Report::new(&cx, agent);
    // A report that cannot be stored stops the parser, and that stops the feeder.
    let (fed, stored) = tokio::join!(feed(rq.body, chunks_in), report.take(pieces));
    fed?;
    stored?;
    let read = parser.await.map_err(|error| ApiError::internal(error.to_string()))?;
    read.map_err(|error| ApiError::malformed(format!("the body is not a report: {error}"), vec![]))?;
    report.end().await
}

/// Hands the body on as it arrives, until it ends or nobody wants more.
async fn feed(mut body: Upload, chunks: mpsc::Sender<Bytes>) -> Result<(), ApiError> {
    while let Some(chunk) = body.chunk().await? {
        if chunks.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// What arrives, for a reader that waits.
struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl io::Read for Chunks {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = to.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut to[..count]);
        Ok(count)
    }
}

/// A report on its way into the database: one transaction, begun when there is a batch to write.
struct Report<'a> {
    cx: &'a Cx,
    agent: AgentId,
    begun: Option<Begun>,
    batch: Vec<Found>,
    ending: Ending,
    partial: bool,
}

struct Begun {
    tx: Tx,
    scan: DiscoveryScanId,
    _permit: SemaphorePermit<'static>,
}

impl<'a> Report<'a> {
    fn new(cx: &'a Cx, agent: AgentId) -> Self {
        Self {
            cx,
            agent,
            begun: None,
            batch: Vec::new(),
            ending: Ending::default(),
            partial: false,
        }
    }

    async fn take(&mut self, mut pieces: mpsc::Receiver<Piece>) -> Result<(), ApiError> {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Directory(directory) => self.ending.directories.push(directory),
                Piece::Certificate(Ok(found)) => {
                    self.batch.push(*found);
                    if self.batch.len() >= BATCH {
                        self.write().await?;
                    }
                }
                Piece::Certificate(Err(why)) | Piece::Error(why) => {
                    self.ending.errors_count = self.ending.errors_count.saturating_add(1);
                    if self.ending.errors.len() < ERRORS_KEPT {
                        self.ending.errors.push(why);
                    }
                }
                Piece::Duration(duration) => self.ending.duration_ms = duration.clamp(0, 86_400_000),
                Piece::Partial(partial) => self.partial = partial,
            }
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<&mut Begun, ApiError> {
        if self.begun.is_none() {
            let permit = WRITERS.acquire().await;
            let permit = permit.map_err(|error| ApiError::internal(error.to_string()))?;
            let mut tx = self.cx.begin().await?;
            let scan = store::begin_scan(&mut tx, &self.agent).await?;
            self.begun = Some(Begun {
                tx,
                scan,
                _permit: permit,
            });
        }
        Ok(self.begun.as_mut().expect("set above"))
    }

    async fn write(&mut self) -> Result<(), ApiError> {
        let (batch, agent) = (std::mem::take(&mut self.batch), self.agent.clone());
        let begun = self.begin().await?;
        let new = store::record(&mut begun.tx, &agent, &begun.scan, &batch).await?;
        self.ending.found += batch.len() as i32;
        self.ending.new += new;
        Ok(())
    }

    async fn end(mut self) -> Result<DiscoveryScan, ApiError> {
        self.write().await?;
        let Report {
            cx,
            agent,
            mut ending,
            partial,
            ..
        } = self;
        let Begun { mut tx, scan, _permit } = self.begun.expect("written above");
        ending.whole = !partial && ending.errors_count == 0;
        store::end_scan(&mut tx, &agent, &scan, &ending).await?;
        let by = certctl_model::audit::Actor::agent(&agent);
        let event = Event::new(&by, "discovery_scan_completed", "discovery_scan", &scan)
            .with("agent_id", &agent)
            .with(
                "directories",
                ending.directories.iter().take(ERRORS_KEPT).collect::<Vec<_>>(),
            )
            .with("certificates_found", ending.found)
            .with("certificates_new", ending.new)
            .with("errors_count", ending.errors_count);
        tx.note(event);
        let done = listing::get(&mut tx, cx.now(), scan.as_str()).await?;
        tx.commit().await?;
        Ok(done)
    }
}

impl Listed for DiscoveredCertificate {
    type Filter = DiscoveredFilter;
    type Sort = DiscoveredSort;

    const KIND: &'static str = "discovered certificate";
    const COLUMNS: &'static str = "d.id, d.fingerprint_sha256, d.common_name, d.sans, d.serial_number, d.issuer_dn,
        d.subject_dn, d.not_before, d.not_after, d.key_algorithm, d.key_size, d.is_ca, d.source_path, d.source_format,
        d.agent_id, d.discovery_scan_id, d.managed_certificate_id, d.status, d.first_seen_at, d.last_seen_at,
        d.missing_since, d.dismissed_at, d.dismissal_reason, d.created_at, d.updated_at, d.spki_sha256,
        (SELECT k.blocked_at FROM blocked_keys k WHERE k.spki_sha256 = d.spki_sha256) AS key_blocked_at";
    const FROM: &'static str = "discovered_certificates d";
    const ID: &'static str = "d.id";
    const DEFAULT: Sort<DiscoveredSort> = Sort {
        key: DiscoveredSort::LastSeenAt,
        descending: true,
    };

    fn column(key: DiscoveredSort) -> Column {
        match key {
            DiscoveredSort::LastSeenAt => Column::time("d.last_seen_at"),
            DiscoveredSort::FirstSeenAt => Column::time("d.first_seen_at"),
            DiscoveredSort::NotAfter => Column::time("d.not_after"),
            DiscoveredSort::CommonName => Column::text("d.common_name"),
        }
    }

    fn restrict(f: &DiscoveredFilter, sql: &mut Where<'_>) {
        sql.eq("d.agent_id", &f.agent_id);
        sql.eq("d.status", &f.status);
        sql.eq("d.is_ca", &f.is_ca);
        sql.eq(
            "d.fingerprint_sha256",
            &f.fingerprint.as_ref().map(|text| text.to_ascii_lowercase()),
        );
        sql.eq("d.managed_certificate_id", &f.managed_certificate_id);
        sql.before("d.not_after", &f.expires_before);
        sql.after("d.not_after", &f.expires_after);
        let now = sql.now;
        match f.expired {
            Some(true) => sql.with("d.not_after <=", now, ""),
            Some(false) => sql.with("d.not_after >", now, ""),
            None => {}
        }
        match f.missing {
            Some(true) => sql.and("d.missing_since IS NOT NULL"),
            Some(false) => sql.and("d.missing_since IS NULL"),
            None => {}
        }
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            fingerprint_sha256: row.try_get("fingerprint_sha256")?,
            common_name: row.try_get("common_name")?,
            sans: row.try_get("sans")?,
            serial_number: row.try_get("serial_number")?,
            issuer_dn: row.try_get("issuer_dn")?,
            subject_dn: row.try_get("subject_dn")?,
            not_before: row.try_get("not_before")?,
            not_after: row.try_get("not_after")?,
            key_algorithm: row.try_get("key_algorithm")?,
            key_size: row.try_get("key_size")?,
            is_ca: row.try_get("is_ca")?,
            spki_sha256: row.try_get("spki_sha256")?,
            key_blocked_at: row.try_get("key_blocked_at")?,
            pem_data: None,
            source_path: row.try_get("source_path")?,
            source_format: row.try_get("source_format")?,
            agent_id: row.try_get("agent_id")?,
            discovery_scan_id: row.try_get("discovery_scan_id")?,
            managed_certificate_id: row.try_get("managed_certificate_id")?,
            status: row.try_get("status")?,
            first_seen_at: row.try_get("first_seen_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
            missing_since: row.try_get("missing_since")?,
            dismissed_at: row.try_get("dismissed_at")?,
            dismissal_reason: row.try_get("dismissal_reason")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

/// Adds the certificates themselves: they are large, and few ask for them.
async fn add_pem(cx: &Cx, found: &mut [DiscoveredCertificate]) -> Result<(), ApiError> {
    let ids: Vec<String> = found.iter().map(|one| one.id.to_string()).collect();
    let ders: Vec<(DiscoveredCertificateId, Vec<u8>)> =
        sqlx::query_as("SELECT id, der FROM discovered_certificates WHERE id = ANY ($1)")
            .bind(ids)
            .fetch_all(cx.pool())
            .await?;
    let ders: HashMap<_, _> = ders.into_iter().collect();
    for one in found {
        one.pem_data = ders.get(&one.id).map(|der| pem::encode("CERTIFICATE", der));
    }
    Ok(())
}

async fn list(cx: Cx, rq: Request<ListDiscoveredCertificates>) -> Result<Page<DiscoveredCertificate>, ApiError> {
    let with_pem = rq.query.fields.iter().any(|field| field == "pem_data");
    let mut page: Page<DiscoveredCertificate> = listing::list(&cx, rq.query).await?;
    if with_pem {
        add_pem(&cx, &mut page.data).await?;
    }
    Ok(page)
}

async fn get(cx: Cx, rq: Request<GetDiscoveredCertificate>) -> Result<DiscoveredCertificate, ApiError> {
    let mut found: DiscoveredCertificate = listing::fetch(&cx, rq.path.id.as_str()).await?;
    add_pem(&cx, std::slice::from_mut(&mut found)).await?;
    Ok(found)
}

fn reach(all_with_fingerprint: bool) -> Reach {
    match all_with_fingerprint {
        true => Reach::Fingerprint,
        false => Reach::One,
    }
}

async fn claim(cx: Cx, rq: Request<ClaimDiscoveredCertificate>) -> Result<Triaged, ApiError> {
    let ClaimRequest {
        managed_certificate_id,
        create,
        all_with_fingerprint,
    } = rq.body;
    if managed_certificate_id.is_some() && create.is_some() {
        return Err(ApiError::invalid(
            "create",
            "cannot be given together with managed_certificate_id",
        ));
    }
    let mut tx = cx.begin().await?;
    let found = store::lock(&mut tx, &rq.path.id).await?;
    found.must_be_claimable()?;
    let certificate = match managed_certificate_id {
        Some(id) => {
            let certificate = certificates::lock(&mut tx, &id).await?;
            if certificate.archived_at.is_some() {
                return Err(ApiError::new(Kind::WrongState, format!("certificate {id} is archived")));
            }
            id
        }
        None => manage(&mut tx, &found, create.unwrap_or_default()).await?,
    };
    found.claim(&mut tx, &certificate, reach(all_with_fingerprint)).await?;
    tx.commit().await?;
    Ok(Triaged {
        status: "claimed".to_owned(),
        message: format!("discovered certificate {} is managed as {certificate}", found.id),
        managed_certificate_id: Some(certificate),
    })
}

/// Makes a managed certificate of what was found, with its chain as far as the same host has it; or finds the one that
/// has it as a version.
async fn manage(
    tx: &mut Tx,
    found: &Locked,
    enrolment: certctl_contract::transfer::Enrolment,
) -> Result<CertificateId, ApiError> {
    if found.is_ca {
        return Err(ApiError::new(
            Kind::WrongState,
            "it is the certificate of an authority, and those are not managed; dismiss it",
        ));
    }
    let facts = CertificateFacts::inventory_der(&found.der).map_err(|error| ApiError::internal(error.to_string()))?;
    let leaf = transfer::imported(&facts, String::new());
    let imports = transfer::enrol(tx, &[leaf], enrolment).await?;
    match imports.into_iter().next() {
        Some(Import::Created { certificate, .. } | Import::Duplicate { certificate }) => Ok(certificate),
        None => Err(ApiError::internal("one certificate was imported, and none came back")),
    }
}

async fn dismiss(cx: Cx, rq: Request<DismissDiscoveredCertificate>) -> Result<Triaged, ApiError> {
    let DismissRequest {
        reason,
        all_with_fingerprint,
    } = rq.body;
    if reason
        .as_ref()
        .is_some_and(|text| text.chars().count() > 1024 || text.contains(certctl_model::text::is_hidden))
    {
        return Err(ApiError::invalid(
            "reason",
            "has up to 1024 characters, without control characters",
        ));
    }
    let mut tx = cx.begin().await?;
    let found = store::lock(&mut tx, &rq.path.id).await?;
    found
        .dismiss(&mut tx, reason.as_deref(), reach(all_with_fingerprint))
        .await?;
    tx.commit().await?;
    Ok(Triaged {
        status: "dismissed".to_owned(),
        message: format!("discovered certificate {} is not to be managed", found.id),
        managed_certificate_id: None,
    })
}

impl Listed for DiscoveryScan {
    type Filter = ScanFilter;
    type Sort = ScanSort;

    const KIND: &'static str = "scan";
    const COLUMNS: &'static str = "s.id, s.agent_id, s.directories, s.certificates_found, s.certificates_new,
        s.errors_count, s.errors, s.scan_duration_ms, s.started_at, s.completed_at";
    const FROM: &'static str = "discovery_scans s";
    const ID: &'static str = "s.id";
    const DEFAULT: Sort<ScanSort> = Sort {
        key: ScanSort::StartedAt,
        descending: true,
    };

    fn column(key: ScanSort) -> Column {
        match key {
            ScanSort::StartedAt => Column::time("s.started_at"),
        }
    }

    fn restrict(f: &ScanFilter, sql: &mut Where<'_>) {
        sql.eq("s.agent_id", &f.agent_id);
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::from_row(row)
    }
}

async fn scans(cx: Cx, rq: Request<ListDiscoveryScans>) -> Result<Page<DiscoveryScan>, ApiError> {
    listing::list(&cx, rq.query).await
}

async fn summary(cx: Cx, _: Request<GetDiscoverySummary>) -> Result<DiscoverySummary, ApiError> {
    let rows: Vec<(DiscoveryStatus, i64)> =
        sqlx::query_as("SELECT status, sum(delta)::bigint FROM discovered_tallies GROUP BY status")
            .fetch_all(cx.pool())
            .await?;
    let mut summary = DiscoverySummary::default();
    for (status, count) in rows {
        match status {
            DiscoveryStatus::Unmanaged => summary.unmanaged = count,
            DiscoveryStatus::Managed => summary.managed = count,
            DiscoveryStatus::Dismissed => summary.dismissed = count,
        }
    }
    Ok(summary)
}
