//! The constant body that the API gives away under `CERTCTL_BENCH_ROUTE=true`: no row of the contract, and so declared
//! here as it is there.

use certctl_client::{Client, ClientError};
use certctl_contract::endpoint::NoBody;
use certctl_contract::query::NoParams;
use certctl_contract::{
    bench::{Constant, ConstantQuery},
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
