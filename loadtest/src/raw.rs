//! HTTP/1.1 with requests that are octets already: for answers so quick that a client would be what is measured.

use std::{io, net::SocketAddr, sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use crate::load::{self, Done, Report};

/// A connection, and what was read from it.
pub(crate) struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer: its status, and where in the buffer its head and its body end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: usize,
    end: usize,
}

impl Line {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(8 * 1024),
        })
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(answer) = self.whole()? {
                return Ok(answer);
            }
        }
    }

    fn whole(&self) -> io::Result<Option<Answer>> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(&self.buffer) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(wrong(&error.to_string())),
        };
        let length = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| str::from_utf8(header.value).ok()?.parse::<usize>().ok())
            .ok_or_else(|| wrong("the answer has no length"))?;
        let end = head + length;
        Ok((self.buffer.len() >= end).then_some(Answer {
            status: response.code.unwrap_or(0),
            head,
            end,
        }))
    }

    /// The body of the last answer.
    pub(crate) fn body(&self, answer: &Answer) -> &[u8] {
        &self.buffer[answer.head..answer.end]
    }

    /// The last answer as it came.
    pub(crate) fn octets(&self) -> &[u8] {
        &self.buffer
    }
}

/// What is sent, and how it is judged: the n-th request, and the status of an answer with 200 for what is right.
pub(crate) trait Asks: Clone + Send + Sync + 'static {
    fn request(&self, n: u64) -> Vec<u8>;
    fn judge(&self, status: u16, body: &[u8]) -> u16;
}

/// Sends `all` requests, or as many as can be in `length`: on each connection the next one once its answer is there, or
/// so many a second.
pub(crate) async fn drive(
    address: SocketAddr,
    name: &'static str,
    connections: u32,
    all: u64,
    length: Duration,
    rate: Option<f64>,
    asks: impl Asks,
) -> Report {
    let started = Instant::now();
    let end = started + length;
    load::gather(connections, move |next| {
        let asks = asks.clone();
        async move {
            let mut report = Report::default();
            let mut line = None;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let due = rate.map(|rate| started + Duration::from_secs_f64(n as f64 / rate));
                if n >= all || due.unwrap_or_else(Instant::now) > end {
                    return report;
                }
                let request = asks.request(n);
                let mut begun = Instant::now();
                if let Some(due) = due {
                    if begun < due {
                        sleep_until(due).await;
                        begun = Instant::now();
                    } else {
                        begun = due;
                    }
                }
                if line.is_none() {
                    line = Line::connect(address).await.ok();
                }
                let status = match &mut line {
                    None => 0,
                    Some(open) => match open.ask(&request).await {
                        Ok(answer) => asks.judge(answer.status, open.body(&answer)),
                        Err(_) => {
                            line = None;
                            0
                        }
                    },
                };
                report.note(
                    &Done {
                        operation: name,
                        status,
                    },
                    begun.elapsed(),
                );
            }
        }
    })
    .await
}
