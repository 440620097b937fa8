//! The constant body that the API gives away under `CERTCTL_BENCH_ROUTE=true`: a page of the same size is
//! held against it.

use certctl_client::{Client, ClientError};
use certctl_contract::{
    bench::{Constant, ConstantQuery},
    endpoint::NoBody,
    query::NoParams,
};

/// Asks for a body of so many octets.
///
/// # Errors
/// 404 when the API does not give it.
pub(crate) async fn ask(client: &Client, octets: u32) -> Result<(), ClientError> {
    let query = ConstantQuery { octets: Some(octets) };
    client.call::<Constant>(NoParams, query, NoBody).await?;
    Ok(())
}
