//! Wakes a loop for what is due before its next round: a job or a CRL to be tried again, a lease that runs out.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Rings at the instant it is set to.
#[derive(Default)]
pub struct Bell {
    at: watch::Sender<Option<Instant>>,
    rung: watch::Sender<u64>,
}

impl Bell {
    /// Sets it, or silences it; what it was set to before is forgotten.
    pub fn set(&self, at: Option<Instant>) {
        self.at.send_replace(at);
    }

    /// A number that grows whenever it rings.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.rung.subscribe()
    }

    /// Rings for ever.
    pub async fn run(&self) {
        let mut at = self.at.subscribe();
        loop {
            let next = *at.borrow_and_update();
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = at.changed() => {}
                () = due => {
                    self.at.send_if_modified(|at| {
                        let unchanged = *at == next;
                        if unchanged {
                            *at = None;
                        }
                        unchanged
                    });
                    self.rung.send_modify(|n| *n += 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_once_at_the_last_instant_it_was_set_to() {
        let bell = Bell::default();
        let (start, mut rung) = (Instant::now(), bell.subscribe());
        bell.set(Some(start + Duration::from_secs(60)));
        bell.set(Some(start + Duration::from_secs(2)));
        let story = async {
            rung.changed().await.unwrap();
            assert_eq!((*rung.borrow_and_update(), start.elapsed().as_secs()), (1, 2));
            let again = tokio::time::timeout(Duration::from_secs(100), rung.changed()).await;
            assert!(again.is_err(), "it rang again");
        };
        tokio::select! {
            () = bell.run() => unreachable!("it runs for ever"),
            () = story => {}
        }
    }
}
