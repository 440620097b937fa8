//! From the queue of [`calls`](crate::calls) to the table, by way of the disk.
//!
//! One task appends records to a segment, a file of JSON lines; another inserts whole segments and removes them. What a
//! process that was killed has left behind is taken up by the next one that starts. A record that is inserted twice is
//! there once, because its id is. While the database is away segments pile up to a limit; beyond it calls are counted.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use certctl_runtime::{journal::private_directory, tasks::Tasks};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    app::App,
    calls::{Record, Trail},
};

/// Records of a segment at most: one INSERT.
const MOST: usize = 500;
/// How long a segment stays open.
const AGE: Duration = Duration::from_millis(250);
/// How long to wait after a failed insert.
const PAUSE: Duration = Duration::from_secs(1);
const STATE: &str = "/var/lib/certctl/audit";

/// Where the spool is, when nobody says.
pub fn default_directory() -> PathBuf {
    if private_directory(Path::new(STATE)).is_ok() {
        return PathBuf::from(STATE);
    }
    let owner = rustix::process::geteuid().as_raw();
    let temporary = std::env::temp_dir().join(format!("certctl-audit-{owner}"));
    tracing::warn!(
        path = %temporary.display(),
        "CERTCTL_AUDIT_SPOOL_DIR is not set and {STATE} cannot be written: calls wait in a temporary directory"
    );
    temporary
}

/// Starts writing the trail of calls.
///
/// # Errors
/// When the directory cannot be used.
pub fn start(app: &Arc<App>, base: &Path, limit: u64, tasks: &Tasks) -> anyhow::Result<()> {
    let Some(queue) = app.trail.queue() else {
        return Ok(());
    };
    let (home, left) = Home::open(base).with_context(|| format!("the spool in {}", base.display()))?;
    let (sealed, segments) = mpsc::unbounded_channel();
    let level = Arc::new(Level::default());
    let writer = Writer {
        home,
        level: level.clone(),
        limit,
        // Not bounded itself: what it holds is bounded by the files it names.
        sealed,
        open: None,
        next: left.len() as u64,
    };
    for path in left {
        let octets = fs::metadata(&path).map(|m| m.len()).unwrap_or_default();
        level.octets.fetch_add(octets, Ordering::Relaxed);
        writer.hand_over(Segment { path, octets });
    }
    let (writing, stop) = (app.clone(), tasks.token());
    // On a thread of its own: a page cache takes lines in microseconds, but a disk that is full of work may not.
    let runtime = Handle::current();
    let write = tokio::task::spawn_blocking(move || runtime.block_on(write(writing, queue, writer, stop)));
    tasks.spawn("calls", async move { write.await.expect("writing does not panic") });
    let (app, stop) = (app.clone(), tasks.token());
    tasks.spawn("trail", async move { insert_all(&app, segments, &level, stop).await });
    Ok(())
}

/// A directory of this process alone; its lock ends with the process.
struct Home {
    path: PathBuf,
    _lock: File,
}

impl Home {
    /// Opens one, and takes over what processes that are gone have left.
    fn open(base: &Path) -> anyhow::Result<(Self, Vec<PathBuf>)> {
        private_directory(base)?;
        let (path, lock) = Self::make(base)?;
        let mut left = vec![];
        let mut others: Vec<PathBuf> = fs::read_dir(base)?.flatten().map(|entry| entry.path()).collect();
        others.sort();
        for other in others.into_iter().filter(|other| *other != path) {
            let Ok(lock) = File::open(other.join("lock")) else {
                continue;
            };
            if lock.try_lock().is_err() {
                continue;
            }
            // Another process was quicker.
            let Ok(entries) = fs::read_dir(&other) else { continue };
            let mut segments: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            segments.retain(|segment| segment.extension().is_some_and(|end| end == "ndjson"));
            segments.sort();
            for segment in segments {
                let here = path.join(format!("{:020}.ndjson", left.len()));
                fs::rename(segment, &here)?;
                left.push(here);
            }
            // One that holds something unexpected stays where it is.
            let _ = fs::remove_file(other.join("lock"));
            let _ = fs::remove_dir(&other);
        }
        Ok((Self { path, _lock: lock }, left))
    }

    fn make(base: &Path) -> anyhow::Result<(PathBuf, File)> {
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let path = base.join(Uuid::now_v7().to_string());
            DirBuilder::new().mode(0o700).create(&path)?;
            let lock = File::create_new(path.join("lock"))?;
            // A process that looks for what others left may be there first, and takes the directory away.
            if lock.try_lock().is_ok() {
                return Ok((path, lock));
            }
        }
        bail!("no directory of our own could be made")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let empty = fs::read_dir(&self.path).is_ok_and(|entries| entries.count() == 1);
        if empty {
            let _ = fs::remove_file(self.path.join("lock"));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// How much is on disk.
#[derive(Default)]
struct Level {
    octets: AtomicU64,
    segments: AtomicUsize,
}

struct Segment {
    path: PathBuf,
    octets: u64,
}

struct OpenSegment {
    file: File,
    path: PathBuf,
    octets: u64,
    records: usize,
    since: Instant,
}

struct Writer {
    home: Home,
    level: Arc<Level>,
    limit: u64,
    sealed: mpsc::UnboundedSender<Segment>,
    open: Option<OpenSegment>,
    next: u64,
}

impl Writer {
    fn has_room(&self) -> bool {
        self.level.octets.load(Ordering::Relaxed) < self.limit
    }

    /// Whether there is so much room again that it will last.
    fn recovered(&self) -> bool {
        self.level.octets.load(Ordering::Relaxed) < self.limit / 2
    }

    fn append(&mut self, trail: &Trail, records: Vec<Record>) {
        if !self.has_room() {
            records.iter().for_each(|record| trail.lose(record.at));
            return;
        }
        for part in records.chunks(MOST) {
            if let Err(error) = self.append_part(part) {
                tracing::error!(%error, "calls cannot be written to the spool");
                part.iter().for_each(|record| trail.lose(record.at));
                self.seal();
            }
        }
    }

    fn append_part(&mut self, records: &[Record]) -> io::Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.records + records.len() > MOST)
        {
            self.seal();
        }
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        let open = match &mut self.open {
            Some(open) => open,
            closed => {
                let path = self.home.path.join(format!("{:020}.ndjson", self.next));
                self.next += 1;
                closed.insert(OpenSegment {
                    file: OpenOptions::new()
                        .create_new(true)
                        .append(true)
                        .mode(0o600)
                        .open(&path)?,
                    path,
                    octets: 0,
                    records: 0,
                    since: Instant::now(),
                })
            }
        };
        open.file.write_all(&lines)?;
        open.octets += lines.len() as u64;
        open.records += records.len();
        self.level.octets.fetch_add(lines.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// While inserting is behind, segments grow full instead of many.
    fn is_due(&self) -> bool {
        let behind = self.level.segments.load(Ordering::Relaxed) > 0;
        self.open
            .as_ref()
            .is_some_and(|open| open.records >= MOST || (!behind && open.since.elapsed() >= AGE))
    }

    fn seal(&mut self) {
        if let Some(OpenSegment { path, octets, .. }) = self.open.take() {
            self.hand_over(Segment { path, octets });
        }
    }

    fn hand_over(&self, segment: Segment) {
        self.level.segments.fetch_add(1, Ordering::Relaxed);
        // Nobody takes it any more when the process ends; the next one finds it.
        let _ = self.sealed.send(segment);
    }
}

async fn write(app: Arc<App>, mut queue: mpsc::Receiver<Record>, mut writer: Writer, stop: CancellationToken) {
    let mut quiet = 0;
    // Answers that are under way when the service stops are recorded too.
    while quiet < 3 {
        let pause = match writer.open.is_some() || stop.is_cancelled() {
            true => AGE / 2,
            false => Duration::from_secs(1),
        };
        let mut records = Vec::new();
        tokio::select! {
            _ = queue.recv_many(&mut records, MOST) => {}
            () = sleep(pause) => {}
            () = stop.cancelled(), if !stop.is_cancelled() => {}
        }
        quiet = match stop.is_cancelled() && app.trail.open() == 0 && records.is_empty() {
            true => quiet + 1,
            false => 0,
        };
        let gap_too = writer.recovered() || quiet == 3;
        records.extend(app.trail.owed(app.clock.now(), gap_too));
        if !records.is_empty() {
            writer.append(&app.trail, records);
        }
        if writer.is_due() {
            writer.seal();
        }
    }
    writer.seal();
}

/// What became of a segment.
enum Outcome {
    Stored,
    /// The database refuses what is in it.
    Refused(String),
    Later(String),
}

async fn insert_all(app: &App, mut segments: mpsc::UnboundedReceiver<Segment>, level: &Level, stop: CancellationToken) {
    let mut told = false;
    while let Some(segment) = segments.recv().await {
        loop {
            match insert(app, &segment.path).await {
                Outcome::Stored => {
                    told = false;
                    if let Err(error) = fs::remove_file(&segment.path) {
                        tracing::warn!(%error, path = %segment.path.display(), "a segment that is stored stays on disk");
                    }
                    break;
                }
                Outcome::Refused(error) => {
                    tracing::error!(%error, path = %segment.path.display(), "the trail refuses a segment; it is set aside");
                    let _ = fs::rename(&segment.path, segment.path.with_extension("refused"));
                    break;
                }
                Outcome::Later(error) => {
                    if !told {
                        tracing::warn!(%error, "calls wait on disk until the trail can be written");
                        told = true;
                    }
                    if stop.is_cancelled() {
                        return;
                    }
                    tokio::select! { () = sleep(PAUSE) => {}, () = stop.cancelled() => {} }
                }
            }
        }
        level.octets.fetch_sub(segment.octets, Ordering::Relaxed);
        level.segments.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn insert(app: &App, path: &Path) -> Outcome {
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Outcome::Stored,
        Err(error) => return Outcome::Later(error.to_string()),
    };
    let (mut records, mut broken): (Vec<Record>, usize) = (vec![], 0);
    for line in text.split(|octet| *octet == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            // The last line of a process that was killed while it wrote, or of a disk that was full.
            Err(_) => broken += 1,
        }
    }
    let column = |f: fn(&Record) -> String| records.iter().map(f).collect::<Vec<String>>();
    let inserted = sqlx::query(
        "INSERT INTO audit_events (id, actor, actor_type, action, resource_type, resource_id, details, at)
         SELECT e.id, e.actor, e.actor_type, e.action, 'api', e.resource_id, e.details, e.at
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::timestamptz[])
                AS e (id, actor, actor_type, action, resource_id, details, at)
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(column(|r| r.id.to_string()))
    .bind(column(|r| r.actor.clone()))
    .bind(column(|r| r.actor_type.to_string()))
    .bind(column(|r| r.action.clone()))
    .bind(column(|r| r.resource_id.clone()))
    .bind(records.iter().map(|r| r.details.clone()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.at.date_time()).collect::<Vec<_>>())
    .execute(&app.pool)
    .await;
    match inserted {
        Ok(_) => {
            let at = records.last().map_or_else(|| app.clock.now(), |last| last.at);
            (0..broken).for_each(|_| app.trail.lose(at));
            Outcome::Stored
        }
        Err(sqlx::Error::Database(error))
            if error
                .code()
                .is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
        {
            Outcome::Refused(error.to_string())
        }
        Err(error) => Outcome::Later(error.to_string()),
    }
}
