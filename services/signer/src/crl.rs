//! CRLs (RFC 5280 §5): full, of one shard, and deltas; numbered without repetition, signed by the authority itself.
//!
//! Entries flow from the database into DER and back into it in chunks, so that memory does not grow with their count.
//! The lengths that DER wants first are known last: they are in the first chunk, which is written last. Nothing of it
//! is served until the transaction commits that also numbers the list.

mod body;
mod entry;
mod numbers;

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest;
use certctl_contract::signer::CrlPublished;
use certctl_model::time::Time;
use certctl_runtime::failpoint;
use certctl_store::crls::{self, Body, List, Prior, Record, Scope};
use rasn::types::Integer;
use rasn_pkix::Extensions;
use tracing::info;

use self::{
    body::{CHUNK, Sink},
    entry::Writer,
    numbers::Highest,
};
use crate::{
    Shared,
    authority::Authority,
    der::{self, oid},
    error::{Error, Result},
    lint::{self, crl::WantedList},
};

/// Makes, stores and publishes the next of a list.
///
/// Goes on to the end though the caller hangs up: a connection that is left in the middle of a COPY is of no use.
#[expect(
    clippy::disallowed_methods,
    reason = "it is awaited here, and a panic comes back as an error"
)]
pub(crate) async fn publish(shared: &Arc<Shared>, list: List) -> Result<CrlPublished> {
    let shared = shared.clone();
    let made = tokio::spawn(async move { make(&shared, &list).await }).await;
    made.map_err(|error| Error::Internal(anyhow::Error::new(error).context("making a CRL was cut short")))?
}

async fn make(shared: &Shared, list: &List) -> Result<CrlPublished> {
    let issuer = &list.issuer;
    let authority = shared.authorities.get(issuer).await?;
    // The next to ask for this list sees our number.
    let mut tx = crls::lock(&shared.pool, list).await?;
    let now = shared.clock.now().whole_seconds();
    authority.must_be_valid(now)?;
    let prior = crls::prior(&mut tx, list).await?;
    let base = base(list, &prior)?;
    let highest = Highest::of(&shared.authorities.directory, list);
    let together = issued_together(list, &prior, now).filter(|(number, _)| highest.is_at(*number));
    let next = highest.next(list, prior.number)?;
    let next_update = (now + shared.crl_lifetime).min(authority.not_after()).whole_seconds();
    // Before the entries are read, so that nothing is forgotten that they lack.
    crls::clean(&mut tx, list).await?;

    let body = Body::new(&mut tx, list).await?;
    let (mut sink, store) = body::open(&shared.pool, &body);
    // An entry stays in one CRL beyond the end of its certificate (§3.3).
    let ended_before = now - shared.crl_lifetime;
    let read = async {
        let count = write_entries(&mut tx, list, prior.shards, ended_before, &mut sink).await;
        let length = sink.length;
        (count, length, sink.close())
    };
    let ((count, length, kept), stored) = tokio::join!(read, store);
    let (mut stored, count) = (stored?, count?);
    failpoint::hold("signer.crl_written").await;

    // What has changed after all makes it a list of its own.
    let (number, now) = together.filter(|_| count == 0).unwrap_or((next, now));
    let extensions = extensions(
        shared.terms.public_url.as_deref(),
        &authority,
        list,
        &prior,
        number,
        base,
    )?;
    let head = head(&authority, now, next_update, length, extensions.len());
    let (mut message, mut lint) = (
        authority.message(),
        lint::crl::List::new(WantedList {
            authority: &authority,
            number,
            base,
            is_partial: matches!(list.scope, Scope::Shard(_)),
            this_update: now,
            next_update,
        }),
    );
    let refused = |why: String| Error::Internal(anyhow::anyhow!("{list} is not signed: {why}"));
    let mut add = |octets: &[u8]| -> Result<()> {
        lint.update(octets).map_err(refused)?;
        message.update(octets);
        Ok(())
    };
    add(&head)?;
    for chunk in &kept {
        add(chunk)?;
    }
    if let Some((spilled, chunks)) = &mut stored {
        for seq in 1..=*chunks {
            add(&body.get(spilled, seq).await?)?;
        }
    }
    add(&extensions)?;
    lint.finish().map_err(refused)?;
    let signer = authority.clone();
    let signature = tokio::task::spawn_blocking(move || signer.sign_message(message))
        .await
        .map_err(|error| Error::Internal(anyhow::Error::new(error).context("signing a CRL was cut short")))??;
    let (first, last) = around(&authority, head, length, extensions, &signature);
    let record = Record {
        number,
        base,
        length: octets(first.len() as u64 + length + last.len() as u64)?,
        digest: digest::digest(&digest::SHA256, &last).as_ref().to_vec(),
        entries: count,
        this_update: now,
        next_update,
    };
    match stored {
        Some((mut spilled, chunks)) => {
            body.put(&mut spilled, 0, &first).await?;
            body.put(&mut spilled, chunks + 1, &last).await?;
            spilled.commit().await?;
        }
        None => {
            for (seq, chunk) in (0..).zip(std::iter::once(&first).chain(&kept).chain([&last])) {
                body.put(&mut tx, seq, chunk).await?;
            }
        }
    }
    failpoint::hold("signer.crl_stored").await;
    tokio::task::spawn_blocking(move || highest.note(number))
        .await
        .map_err(|error| Error::Internal(error.into()))??;
    failpoint::hold("signer.crl_numbered").await;
    crls::publish(&mut tx, list, &body, &record).await?;
    tx.commit().await?;
    metrics::counter!("signer_signatures_total", "kind" => "crl", "issuer" => issuer.to_string()).increment(1);
    info!(issuer.id = %issuer, crl_number = number, entries = count, "{list} is published with number {number}");
    Ok(CrlPublished { number, entries: count })
}

/// What stands before the entries and behind them in a CertificateList (§5.1.1).
fn around(
    authority: &Authority,
    head: Vec<u8>,
    entries: u64,
    extensions: Vec<u8>,
    signature: &[u8],
) -> (Vec<u8>, Vec<u8>) {
    let last = [extensions, der::after_tbs(authority.algorithm(), signature)].concat();
    let length = head.len() as u64 + entries + last.len() as u64;
    ([der::header(0x30, length), head].concat(), last)
}

/// The number of the full CRL that a delta builds upon.
fn base(list: &List, prior: &Prior) -> Result<Option<i64>> {
    let refused = |why: &str| Err(Error::WrongState(format!("{list} is not made: {why}")));
    match list.scope {
        Scope::Full => Ok(None),
        Scope::Shard(shard) if (1..=prior.shards).contains(&shard) => Ok(None),
        Scope::Shard(_) => refused("no certificate names it"),
        Scope::Delta if !prior.has_delta => refused("the issuer has crl_delta off"),
        Scope::Delta => match prior.full {
            None => refused("there is no full CRL yet that it could build upon"),
            base => Ok(base),
        },
    }
}

/// The number and the date of the full CRL that a delta is issued together with (RFC 5280 §5.2.3): the delta is the first
/// on it, is made in the same minute, and nothing has changed since.
fn issued_together(list: &List, prior: &Prior, now: Time) -> Option<(i64, Time)> {
    const TOGETHER: Duration = Duration::from_secs(60);
    let (number, made_at) = prior.full.zip(prior.unchanged_since)?;
    (list.scope == Scope::Delta && made_at <= now && now < made_at + TOGETHER).then_some((number, made_at))
}

/// Reads the entries into the sink, and returns how many there are. Leaves the connection usable, whatever happens.
async fn write_entries(
    db: &mut sqlx::PgConnection,
    list: &List,
    shards: i32,
    ended_before: Time,
    sink: &mut Sink,
) -> Result<i64> {
    let mut entries = crls::entries(db, list, shards, ended_before).await?;
    let mut writer = Writer::default();
    let written = async {
        let wrong = |why: String| Error::Internal(anyhow::anyhow!("{list} is not made: {why}"));
        while entries.read(&mut |entry| writer.write(&entry).map_err(wrong)).await? {
            if writer.octets.len() >= CHUNK {
                sink.put(writer.take()).await?;
            }
        }
        Ok(())
    };
    let written: Result<()> = written.await;
    if written.is_err() {
        entries.drain().await;
    }
    written?;
    if !writer.octets.is_empty() {
        sink.put(writer.take()).await?;
    }
    Ok(writer.count)
}

/// What stands before the entries in a TBSCertList (§5.1.2), their own header included. Without entries that is absent.
fn head(authority: &Authority, this_update: Time, next_update: Time, entries: u64, extensions: usize) -> Vec<u8> {
    const VERSION_2: &[u8] = &[2, 1, 1];
    let list = match entries {
        0 => vec![],
        _ => der::header(0x30, entries),
    };
    let content = [
        VERSION_2,
        &der::encode(&authority.algorithm()),
        &der::encode(&authority.name),
        &der::encode(&der::date(this_update)),
        &der::encode(&der::date(next_update)),
        &list,
    ]
    .concat();
    let length = content.len() as u64 + entries + extensions as u64;
    [der::header(0x30, length), content].concat()
}

/// The extensions of a list with their tag, `[0]`: what stands behind the entries (§5.2).
fn extensions(
    public_url: Option<&str>,
    authority: &Authority,
    list: &List,
    prior: &Prior,
    number: i64,
    base: Option<i64>,
) -> Result<Vec<u8>> {
    let url = |list: &List| public_url.map(|base| format!("{base}{}", list.path()));
    let unencodable = || Error::Internal(anyhow::anyhow!("the public URL has no encoding in a CRL"));
    let mut all = vec![
        der::authority_key_id(&authority.key_id),
        der::extension(oid::CRL_NUMBER, false, der::encode(&Integer::from(number))),
    ];
    if let Some(base) = base {
        all.push(der::extension(
            oid::DELTA_CRL_INDICATOR,
            true,
            der::encode(&Integer::from(base)),
        ));
    }
    if let Scope::Shard(_) = list.scope {
        let Some(url) = url(list) else {
            return Err(Error::WrongState(format!(
                "{list} is not made: without CERTCTL_PUBLIC_URL no certificate can name it"
            )));
        };
        all.push(der::issuing_distribution_point(&url).ok_or_else(unencodable)?);
    }
    if list.scope == Scope::Full && prior.has_delta {
        let delta = List {
            scope: Scope::Delta,
            ..list.clone()
        };
        if let Some(url) = url(&delta) {
            all.push(der::freshest_crl(&url).ok_or_else(unencodable)?);
        }
    }
    let all = der::encode(&Extensions::from(all));
    Ok([der::header(0xa0, all.len() as u64), all].concat())
}

fn octets(length: u64) -> Result<i64> {
    i64::try_from(length).map_err(|error| Error::Internal(error.into()))
}

/// A full CRL made without a database.
#[cfg(test)]
pub(crate) fn whole(authority: &Authority, number: i64, entries: &[crls::Entry<'_>], now: Time, next: Time) -> Vec<u8> {
    let list = List::full(authority.issuer.clone());
    let prior = Prior {
        shards: 0,
        has_delta: false,
        number: number - 1,
        full: None,
        unchanged_since: None,
    };
    let mut writer = Writer::default();
    for entry in entries {
        writer.write(entry).unwrap();
    }
    let entries = writer.take();
    let extensions = extensions(None, authority, &list, &prior, number, None).unwrap();
    let head = head(authority, now, next, entries.len() as u64, extensions.len());
    let mut message = authority.message();
    for part in [&head, &entries, &extensions] {
        message.update(part);
    }
    let signature = authority.sign_message(message).unwrap();
    let (first, last) = around(authority, head, entries.len() as u64, extensions, &signature);
    [first, entries, last].concat()
}
