//! A whole list, page by page.

use std::marker::PhantomData;

use certctl_contract::{
    endpoint::{Endpoint, NoBody},
    list::{List, Page, SortKey},
    query::{NoParams, Query},
};

use crate::{Client, ClientError};

/// An operation that answers with a page of a list.
pub trait Listing: Endpoint<Path = NoParams, Body = NoBody, Reply = Page<Self::Row>> {
    /// What is listed.
    type Row;

    /// Turns a query into one for pages by cursor.
    fn by_cursor(query: Self::Query) -> Self::Query;

    /// Moves a query behind the page that ended with `cursor`.
    fn move_behind(query: &mut Self::Query, cursor: String);
}

impl<E, F, S, T> Listing for E
where
    E: Endpoint<Path = NoParams, Query = List<F, S>, Body = NoBody, Reply = Page<T>>,
    F: Query,
    S: SortKey,
{
    type Row = T;

    fn by_cursor(query: List<F, S>) -> List<F, S> {
        List {
            page_size: Some(query.limit()),
            page: None,
            per_page: None,
            ..query
        }
    }

    fn move_behind(query: &mut List<F, S>, cursor: String) {
        query.cursor = Some(cursor);
    }
}

/// Fetches the pages of a list one after the other; see [`Client::pages`].
pub struct Pages<E: Listing> {
    client: Client,
    /// None after the last page.
    query: Option<E::Query>,
    endpoint: PhantomData<E>,
}

impl Client {
    /// Begins a list. Pages are taken by cursor, so that rows inserted meanwhile neither repeat nor hide others.
    pub fn pages<E: Listing>(&self, query: E::Query) -> Pages<E> {
        Pages {
            client: self.clone(),
            query: Some(E::by_cursor(query)),
            endpoint: PhantomData,
        }
    }
}

impl<E: Listing> Pages<E> {
    /// Fetches the next page; none after the last. After an error, asks for the same page again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<Page<E::Row>>, ClientError> {
        let Some(query) = &mut self.query else {
            return Ok(None);
        };
        let page = self.client.typed::<E>(&NoParams, query, &NoBody, None).await?;
        match &page.next_cursor {
            Some(cursor) => E::move_behind(query, cursor.clone()),
            None => self.query = None,
        }
        Ok(Some(page))
    }
}
