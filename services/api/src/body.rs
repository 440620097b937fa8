//! The bodies of requests: how much may arrive, and how fast it must.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use certctl_contract::{endpoint::Class, problem::Kind};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use crate::{calls::Call, error::ApiError};

/// How long nothing may arrive.
const STALL: Duration = Duration::from_secs(10);
/// Octets a second, on the whole, once [`STALL`] has passed.
const LEAST_RATE: u64 = 1024;

/// A body that is arriving. It is hashed as it passes, and nothing of it is kept.
pub struct Upload {
    body: Body,
    class: Class,
    operation: String,
    declared: Option<u64>,
    began: Instant,
    arrived: u64,
    hash: Option<Context>,
    call: Call,
}

impl Upload {
    /// A body of this class, sent to this method, path and query.
    pub fn new(body: Body, class: Class, operation: String, headers: &HeaderMap, call: Call) -> Self {
        let declared = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse().ok());
        Self {
            body,
            class,
            operation,
            declared,
            began: Instant::now(),
            arrived: 0,
            hash: Some(Context::new(&SHA256)),
            call,
        }
    }

    /// Method, path and query.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// The next octets, or nothing at the end.
    ///
    /// # Errors
    /// 413 beyond the limit of its class, 408 when it comes too slowly, 400 when it breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        let limit = self.class.body_limit();
        if self.declared.is_some_and(|n| n > limit) {
            return Err(too_large(limit));
        }
        loop {
            let left = self.class.body_timeout().saturating_sub(self.began.elapsed());
            let frame = timeout(left.min(STALL), self.body.frame())
                .await
                .map_err(|_| too_slow())?;
            let Some(frame) = frame else {
                if let Some(hash) = self.hash.take().filter(|_| self.arrived > 0) {
                    self.call.hashed(hash.finish().as_ref());
                }
                return Ok(None);
            };
            let frame = frame.map_err(|_| ApiError::malformed("the body broke off", vec![]))?;
            let Ok(octets) = frame.into_data() else { continue };
            self.arrived += octets.len() as u64;
            if self.arrived > limit {
                return Err(too_large(limit));
            }
            let elapsed = self.began.elapsed();
            if elapsed > STALL && self.arrived < LEAST_RATE * elapsed.as_secs() {
                return Err(too_slow());
            }
            if let Some(hash) = &mut self.hash {
                hash.update(&octets);
            }
            return Ok(Some(octets));
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub async fn whole(mut self) -> Result<Vec<u8>, ApiError> {
        let mut octets = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            octets.extend_from_slice(&chunk);
        }
        Ok(octets)
    }
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(Kind::TooLarge, format!("the body is larger than {limit} octets"))
}

fn too_slow() -> ApiError {
    ApiError::new(Kind::TooSlow, "the body did not arrive in time")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn upload(class: Class, chunks: impl Iterator<Item = (u64, usize)> + Send + 'static) -> Upload {
        let chunks = stream::unfold(chunks, async |mut chunks| {
            let (wait, octets) = chunks.next()?;
            tokio::time::sleep(Duration::from_secs(wait)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; octets])), chunks))
        });
        Upload::new(
            Body::from_stream(chunks),
            class,
            String::new(),
            &HeaderMap::new(),
            Call::default(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_moves_or_is_given_up() {
        for (class, chunks, outcome) in [
            (Class::Ordinary, vec![(0, 5), (9, 5)], Ok(10)),
            (Class::Ordinary, vec![(0, 5), (11, 5)], Err(Kind::TooSlow)),
            (Class::Ordinary, vec![(4, 100); 6], Err(Kind::TooSlow)),
            (Class::Ordinary, vec![(4, 10_000); 9], Err(Kind::TooSlow)),
            (Class::Ordinary, vec![(0, 1 << 19); 3], Err(Kind::TooLarge)),
            (Class::Import, vec![(4, 1 << 19); 9], Ok(9 << 19)),
        ] {
            let read = upload(class, chunks.into_iter()).whole().await;
            assert_eq!(read.map(|octets| octets.len()).map_err(|e| e.kind()), outcome);
        }
    }
}
