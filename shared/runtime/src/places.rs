//! Places for connections: how many there are, how many one address may hold, and which connection gives way.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::pace::Pace;

/// A full server looks this often for a connection that has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The places of one listener.
pub(crate) struct Places {
    most: usize,
    /// How many one network may hold.
    share: usize,
    inner: Mutex<Inner>,
    freed: Notify,
    told: AtomicBool,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, Entry>,
    /// Open connections that were not asked to give way, all of them and those of each network.
    count: usize,
    of: HashMap<IpAddr, usize>,
}

struct Entry {
    network: Option<IpAddr>,
    pace: Arc<Pace>,
    gives_way: CancellationToken,
}

/// The place of one connection; given back when it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    /// How the connection moves.
    pub(crate) pace: Arc<Pace>,
    /// Cancelled when the connection, being idle, is to make room.
    pub(crate) gives_way: CancellationToken,
}

/// A network that holds its share already, with a request on each connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ShareHeld;

impl Places {
    pub(crate) fn new(most: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            share,
            inner: Mutex::default(),
            freed: Notify::new(),
            told: AtomicBool::new(false),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from this address, or from where no share is counted. When the address holds its share,
    /// its longest idle connection gives way; when all places are taken, the longest idle one of all does. While none is
    /// idle, this waits.
    pub(crate) async fn take(self: &Arc<Self>, from: Option<IpAddr>) -> Result<Place, ShareHeld> {
        let network = from.map(network);
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.try_take(network)? {
                return Ok(place);
            }
            // Either is a reason to look again.
            let _ = timeout(LOOK_AGAIN, freed).await;
        }
    }

    fn try_take(self: &Arc<Self>, network: Option<IpAddr>) -> Result<Option<Place>, ShareHeld> {
        let mut inner = self.inner();
        if let Some(network) = network
            && inner.of.get(&network).is_some_and(|held| *held >= self.share)
            && !inner.one_gives_way(Some(network))
        {
            metrics::counter!("http_connections_refused_total").increment(1);
            if !self.told.swap(true, Relaxed) {
                tracing::warn!(
                    address = %network,
                    "{network} holds {} connections with requests under way, which is its share; further ones from there \
                     are closed",
                    self.share
                );
            }
            return Err(ShareHeld);
        }
        if inner.count >= self.most && !inner.one_gives_way(None) {
            return Ok(None);
        }
        let number = inner.next;
        inner.next += 1;
        inner.count += 1;
        if let Some(network) = network {
            *inner.of.entry(network).or_default() += 1;
        }
        let (pace, gives_way) = (Pace::new(), CancellationToken::new());
        let entry = Entry {
            network,
            pace: pace.clone(),
            gives_way: gives_way.clone(),
        };
        inner.open.insert(number, entry);
        Ok(Some(Place {
            places: self.clone(),
            number,
            pace,
            gives_way,
        }))
    }
}

impl Inner {
    /// Asks the longest idle connection, of this network or of all, to give way; says whether there was one.
    fn one_gives_way(&mut self, network: Option<IpAddr>) -> bool {
        let idle = self
            .open
            .iter()
            .filter(|(_, entry)| !entry.gives_way.is_cancelled() && (network.is_none() || entry.network == network));
        let longest = idle
            .filter_map(|(number, entry)| Some((entry.pace.idle_since()?, *number)))
            .min();
        let Some((_, number)) = longest else { return false };
        if let Some(entry) = self.open.get(&number) {
            entry.gives_way.cancel();
            let network = entry.network;
            self.uncount(network);
        }
        metrics::counter!("http_connections_made_room_total").increment(1);
        true
    }

    fn uncount(&mut self, network: Option<IpAddr>) {
        self.count -= 1;
        if let Some(network) = network
            && let Some(held) = self.of.get_mut(&network)
        {
            *held -= 1;
            if *held == 0 {
                self.of.remove(&network);
            }
        }
    }
}

impl Place {
    /// Whether the connection ends now; one on which a request has begun since stays.
    pub(crate) fn ends(&self) -> bool {
        self.pace.idle_since().is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.places.inner();
        if let Some(entry) = inner.open.remove(&self.number)
            && !entry.gives_way.is_cancelled()
        {
            inner.uncount(entry.network);
        }
        drop(inner);
        self.places.freed.notify_waiters();
    }
}

/// A holder of one IPv6 address holds the 2^64 around it.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four => four,
    }
}

/// A moment that can be held in an atomic: milliseconds since the first call.
pub(crate) fn millis() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use axum::http::Version;
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    fn ip(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_gives_way_when_all_places_are_taken() {
        let places = Places::new(3, 3);
        let mut held = vec![];
        for last in 1..=3 {
            held.push(places.take(ip(last)).await.unwrap());
            advance(Duration::from_secs(1)).await;
        }
        // The first is busy, the second is idle for longest.
        let open = held[0].pace.asked(Version::HTTP_11);
        let fourth = places.take(ip(4)).await.unwrap();
        let gives_way: Vec<bool> = held.iter().map(|place| place.gives_way.is_cancelled()).collect();
        assert_eq!(gives_way, [false, true, false]);
        drop(open);
        let busy = [&held[0], &held[2], &fourth].map(|place| place.pace.asked(Version::HTTP_11));
        assert!(places.take(ip(5)).now_or_never().is_none(), "none is idle");
        drop(busy);
        assert!(places.take(ip(5)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_holds_no_more_than_its_share() {
        let places = Places::new(10, 2);
        let mut held = vec![];
        for _ in 0..2 {
            held.push(places.take(ip(1)).await.unwrap());
            advance(Duration::from_secs(1)).await;
        }
        let third = places.take(ip(1)).await.unwrap();
        assert!(held[0].gives_way.is_cancelled(), "its own longest idle one");
        let busy = [&held[1], &third].map(|place| place.pace.asked(Version::HTTP_11));
        assert_eq!(places.take(ip(1)).await.err(), Some(ShareHeld));
        assert!(places.take(ip(2)).await.is_ok(), "another address");
        for _ in 0..5 {
            held.push(places.take(None).await.unwrap());
        }
        drop(busy);
        drop(third);
        assert!(places.take(ip(1)).await.is_ok());
        drop(held);
        assert_eq!(places.inner().count, 0);
        assert!(places.inner().of.is_empty() && places.inner().open.is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
