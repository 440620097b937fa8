//! Mixes of requests at a constant rate.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use certctl_client::Client;
use certctl_contract::{
    certificates::{Certificate, CertificateFilter, CertificateSort, GetCertificate, ListCertificates},
    endpoint::{Endpoint, NoBody},
    jobs::ListJobs,
    list::{List, Sort, SortKey},
    metrics::DashboardSummary,
    query::{Id, NoParams},
    teams::{CreateTeam, NewTeam, TeamChanges, UpdateTeam},
};
use serde_json::{Value, json};

use crate::{
    ceilings,
    cli::{Mix, Run},
    connect,
    estate::Rng,
    load::{self, Done},
};

/// What was measured, as a table and as JSON.
pub(crate) struct Measured {
    pub(crate) table: String,
    pub(crate) json: Value,
}

/// Runs a mix, and then the ceilings of this machine.
///
/// # Errors
/// When the server is not on this machine or has nothing to ask for.
pub(crate) async fn run(args: &Run) -> anyhow::Result<Measured> {
    let client = args.server.client().await?;
    let page = client
        .call::<ListCertificates>(NoParams, List::default(), NoBody)
        .await?;
    let length = Duration::from_secs(args.seconds);
    let (rate, connections) = (args.rate, args.connections);
    let report = match args.scenario {
        Mix::Lists => {
            ensure!(
                !page.data.is_empty(),
                "there are no certificates to read; seed some first"
            );
            let filters = page.data.iter().flat_map(|certificate| {
                let none = CertificateFilter::default;
                [
                    none(),
                    CertificateFilter {
                        owner_id: Some(certificate.owner_id.clone()),
                        ..none()
                    },
                    CertificateFilter {
                        environment: Some(certificate.environment.clone()),
                        ..none()
                    },
                    CertificateFilter {
                        status: Some(certificate.status),
                        ..none()
                    },
                ]
            });
            let reader = Arc::new(Reader {
                client: client.clone(),
                filters: filters.collect(),
                known: page.data.clone(),
            });
            load::at_rate(rate, length, connections, move |n| {
                let reader = reader.clone();
                async move { reader.read(n).await }
            })
            .await
        }
        Mix::Writes => {
            let teams = Arc::new(teams(&client, connections).await?);
            let client = client.clone();
            load::at_rate(rate, length, connections, move |n| {
                write(client.clone(), teams.clone(), n)
            })
            .await
        }
    };
    let list = List::default;
    let (bare, octets) = ceilings::bare::<ListCertificates>(&page, connections, || NoParams, list, || NoBody).await?;
    let pool = match &args.database_url {
        Some(url) => Some(connect(url, connections).await?),
        None => None,
    };
    let select_1 = match &pool {
        Some(pool) => Some(ceilings::select_1(pool, connections).await),
        None => None,
    };
    let whole = report.whole();
    let json = json!({
        "name": format!("run-{}", match args.scenario { Mix::Lists => "lists", Mix::Writes => "writes" }),
        "rate": rate,
        "connections": connections,
        "failed": whole.failed(),
        "p99_ms": whole.percentile(99.0),
        "measured": report.json(),
        "ceilings": {
            "bare_hyper": ceilings::json(&bare), "octets": octets,
            "select_1": select_1.as_ref().map(ceilings::json),
        },
        "p50_over_bare": load::round(whole.percentile(50.0) / bare.whole().percentile(50.0).max(0.001)),
    });
    let mut table = report.table();
    table += &format!(
        "bare hyper, {octets} octets: {:.0} a second on {connections} connections\n",
        bare.per_second()
    );
    if let Some(select_1) = select_1 {
        table += &format!(
            "SELECT 1: {:.0} a second on {connections} connections\n",
            select_1.per_second()
        );
    }
    Ok(Measured { table, json })
}

/// Reads as people and their programs do.
struct Reader {
    client: Client,
    known: Vec<Certificate>,
    filters: Vec<CertificateFilter>,
}

impl Reader {
    async fn read(&self, n: u64) -> Done {
        let (client, rng) = (&self.client, &mut Rng::of(1, "mix", n));
        match rng.weighted(&[(60, 'l'), (25, 'g'), (10, 'j'), (5, 's')]) {
            'l' => {
                let query = List {
                    sort: Some(Sort {
                        key: *rng.pick(CertificateSort::all()),
                        descending: rng.chance(0.5),
                    }),
                    filter: rng.pick(&self.filters).clone(),
                    ..List::default()
                };
                let page = client.call::<ListCertificates>(NoParams, query, NoBody).await;
                Done::of(ListCertificates::NAME, page)
            }
            'g' => {
                let id = rng.pick(&self.known).id.clone();
                let found = client.call::<GetCertificate>(Id { id }, NoParams, NoBody).await;
                Done::of(GetCertificate::NAME, found)
            }
            'j' => {
                let page = client.call::<ListJobs>(NoParams, List::default(), NoBody).await;
                Done::of(ListJobs::NAME, page)
            }
            _ => {
                let summary = client.call::<DashboardSummary>(NoParams, NoParams, NoBody).await;
                Done::of(DashboardSummary::NAME, summary)
            }
        }
    }
}

/// Makes teams to change, one for each writer, so that none waits for another's row; those of an earlier run are taken.
pub(crate) async fn teams(client: &Client, count: u32) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for n in 0..count {
        let id = format!("t-loadtest-{n}");
        let team = NewTeam {
            id: Some(id.parse().context("an id of ours")?),
            name: format!("Changed by the load test ({n})"),
            description: String::new(),
            email: None,
            notify_from: None,
        };
        match client.call::<CreateTeam>(NoParams, NoParams, team).await {
            Ok(_) => {}
            Err(error) if error.status() == Some(409) => {}
            Err(error) => return Err(error).context("cannot make a team to change"),
        }
        ids.push(id);
    }
    Ok(ids)
}

/// Changes one of the teams.
pub(crate) async fn write(client: Client, teams: Arc<Vec<String>>, n: u64) -> Done {
    let id = teams[n as usize % teams.len()].parse().expect("an id of ours");
    let change = TeamChanges {
        description: Some(format!("Change {n}")),
        ..TeamChanges::default()
    };
    let changed = client.call::<UpdateTeam>(Id { id }, NoParams, change).await;
    Done::of(UpdateTeam::NAME, changed)
}
