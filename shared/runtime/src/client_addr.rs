//! Where a request comes from, though it passed through proxies: what they say counts only if they are trusted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::http::HeaderMap;
use clap::ValueEnum;
use ipnet::IpNet;
use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The address of whoever asks; an extension of every request that came over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub IpAddr);

/// The header in which trusted proxies name those before them. One, not both: a client could write the other itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, which most proxies write.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Which proxies stand in front, and how they speak.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Those that are believed; nobody is unless listed.
    pub trusted: Vec<IpNet>,
    /// Where they name those before them.
    pub header: ForwardedHeader,
    /// Whether they begin each connection with a header of the PROXY protocol, version 1 or 2.
    pub proxy_protocol: bool,
    /// Whether it was said that a header came from a peer that is not trusted.
    pub told: Arc<AtomicBool>,
}

impl Proxies {
    pub(crate) fn trust(&self, addr: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&addr))
    }

    /// Reads who is at the other end of a new connection, consuming the PROXY header of a trusted proxy.
    ///
    /// A trusted proxy must send the header, since guessing would let clients write it; all others must not.
    ///
    /// # Errors
    ///
    /// The header is missing, broken or too long, or the connection ended.
    pub async fn source(&self, peer: SocketAddr, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<IpAddr> {
        let peer = peer.ip().to_canonical();
        if !(self.proxy_protocol && self.trust(peer)) {
            return Ok(peer);
        }
        // Health checks of the proxy itself name nobody.
        Ok(read_header(stream).await?.unwrap_or(peer).to_canonical())
    }

    /// Finds the client of a request: the rightmost hop that is not a trusted proxy.
    pub fn client(&self, source: IpAddr, headers: &HeaderMap) -> ClientAddr {
        let mut client = source.to_canonical();
        if !self.trust(client) {
            self.tell_of_a_stranger(client, headers);
            return ClientAddr(client);
        }
        for hop in self.hops(headers).into_iter().rev() {
            match hop {
                Some(before) if self.trust(client) => client = before,
                _ => break,
            }
        }
        ClientAddr(client)
    }

    /// Says once that a proxy seems to be missing in the settings, or that a client pretends to be one.
    fn tell_of_a_stranger(&self, peer: IpAddr, headers: &HeaderMap) {
        let named = ["x-forwarded-for", "forwarded"]
            .into_iter()
            .find(|name| headers.contains_key(*name));
        if let Some(header) = named
            && !self.told.swap(true, Relaxed)
        {
            tracing::warn!(
                %peer,
                "{peer} sent {header} and is not listed in CERTCTL_TRUSTED_PROXIES: the header does not count, and all \
                 clients behind {peer} are one address to rate limits and to the audit trail. This is said once"
            );
        }
    }

    /// The hops in order; `None` for one that is hidden or cannot be read.
    fn hops(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        let (name, read): (_, fn(&str) -> Option<IpAddr>) = match self.header {
            ForwardedHeader::XForwardedFor => ("x-forwarded-for", node),
            ForwardedHeader::Forwarded => ("forwarded", element),
        };
        let lines = headers.get_all(name).into_iter();
        // Commas in quotes split as well: what a trusted proxy appended stays whole behind the last one.
        let hops = lines.flat_map(|line| match line.to_str() {
            Ok(text) => text.split(',').map(read).collect(),
            Err(_) => vec![None],
        });
        hops.collect()
    }
}

/// The `for` of an element of `Forwarded` (RFC 7239 §4).
fn element(text: &str) -> Option<IpAddr> {
    let mut pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    node(value.trim().trim_matches('"'))
}

/// An address with or without a port.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let addr = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0.parse(),
        None => text
            .parse()
            .or_else(|_| text.parse::<SocketAddr>().map(|addr| addr.ip())),
    };
    addr.ok().map(|addr: IpAddr| addr.to_canonical())
}

/// Reads exactly the header and not an octet more.
async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    /// The longest header of version 1.
    const MAX_TEXT: usize = 107;
    /// Addresses and the few extensions that proxies send.
    const MAX_BINARY: usize = 4096;
    const TEXT: &[u8] = b"PROXY ";
    /// Signature, version, family and length of version 2.
    const FIXED: usize = 16;
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("PROXY header: {why}"));
    let mut header = vec![0; TEXT.len()];
    stream.read_exact(&mut header).await?;
    if header == TEXT {
        while !header.ends_with(b"\r\n") {
            if header.len() == MAX_TEXT {
                return Err(wrong("too long"));
            }
            header.push(stream.read_u8().await?);
        }
        let parsed = v1::Header::try_from(&*header).map_err(|error| wrong(&error.to_string()))?;
        return Ok(match parsed.addresses {
            v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Unknown => None,
        });
    }
    header.resize(FIXED, 0);
    stream.read_exact(&mut header[TEXT.len()..]).await?;
    if !header.starts_with(v2::PROTOCOL_PREFIX) {
        return Err(wrong("missing"));
    }
    let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if rest > MAX_BINARY {
        return Err(wrong("too long"));
    }
    header.resize(FIXED + rest, 0);
    stream.read_exact(&mut header[FIXED..]).await?;
    let parsed = v2::Header::try_from(&*header).map_err(|error| wrong(&error.to_string()))?;
    Ok(match (parsed.command, parsed.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn proxies(header: ForwardedHeader) -> Proxies {
        Proxies {
            trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            header,
            proxy_protocol: true,
            told: Arc::default(),
        }
    }

    #[test]
    fn the_rightmost_hop_that_is_not_trusted_is_the_client() {
        use ForwardedHeader::{Forwarded, XForwardedFor};
        for (kind, source, lines, client) in [
            (XForwardedFor, "203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            (XForwardedFor, "10.0.0.1", &[], "10.0.0.1"),
            (XForwardedFor, "10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            (XForwardedFor, "::ffff:10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", &["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            (
                XForwardedFor,
                "10.0.0.1",
                &["1.1.1.1", "198.51.100.1, 10.0.0.2"],
                "198.51.100.1",
            ),
            (XForwardedFor, "10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (XForwardedFor, "10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            (XForwardedFor, "10.0.0.1", &["1.1.1.1, \u{e9}"], "10.0.0.1"),
            (XForwardedFor, "fd00::1", &["2001:db8::7"], "2001:db8::7"),
            (
                Forwarded,
                "10.0.0.1",
                &["for=1.1.1.1;proto=https, For=\"[2001:db8::7]:99\";by=_x"],
                "2001:db8::7",
            ),
            (Forwarded, "10.0.0.1", &["for=1.1.1.1, for=_hidden"], "10.0.0.1"),
            (Forwarded, "10.0.0.1", &["proto=http"], "10.0.0.1"),
        ] {
            let name = match kind {
                XForwardedFor => "x-forwarded-for",
                Forwarded => "forwarded",
            };
            let mut headers = HeaderMap::new();
            for line in lines {
                let value = axum::http::HeaderValue::from_bytes(line.as_bytes()).unwrap();
                headers.append(axum::http::HeaderName::from_static(name), value);
            }
            assert_eq!(
                proxies(kind).client(ip(source), &headers),
                ClientAddr(ip(client)),
                "{source} {lines:?}"
            );
            // Nobody is believed unless listed, and never in the header that proxies do not write.
            let nobody = Proxies::default();
            assert_eq!(nobody.client(ip(source), &headers).0, ip(source).to_canonical());
            let other = proxies(match kind {
                XForwardedFor => Forwarded,
                Forwarded => XForwardedFor,
            });
            assert_eq!(other.client(ip(source), &headers).0, ip(source).to_canonical());
        }
    }

    #[test]
    fn forwarded_headers_of_a_stranger_are_told_once() {
        let proxies = proxies(ForwardedHeader::default());
        let mut headers = HeaderMap::new();
        proxies.client(ip("203.0.113.9"), &headers);
        assert!(!proxies.told.load(Relaxed), "no header, nothing to say");
        headers.insert("x-forwarded-for", axum::http::HeaderValue::from_static("192.0.2.1"));
        proxies.client(ip("10.0.0.1"), &headers);
        assert!(!proxies.told.load(Relaxed), "a trusted proxy");
        proxies.client(ip("203.0.113.9"), &headers);
        assert!(proxies.told.load(Relaxed));
    }

    #[tokio::test]
    async fn a_proxy_header_is_read_to_its_last_octet() {
        let peer: SocketAddr = "10.0.0.1:5000".parse().unwrap();
        let v2 = |command: u8, family: u8, rest: &[u8]| {
            let mut header = v2::PROTOCOL_PREFIX.to_vec();
            header.extend([0x20 | command, family]);
            header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
            header.extend(rest);
            header
        };
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0, 80, 1, 187];
        let mut six = ip("2001:db8::7")
            .to_string()
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()
            .to_vec();
        six.extend([0; 20]);
        let mut with_extension = four.to_vec();
        with_extension.extend([4, 0, 1, 42]);
        for (header, source) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 80 443\r\n".to_vec(), Some("192.0.2.7")),
            (
                b"PROXY TCP6 2001:db8::7 fd00::1 80 443\r\n".to_vec(),
                Some("2001:db8::7"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Some("10.0.0.1")),
            (v2(1, 0x11, &four), Some("192.0.2.7")),
            (v2(1, 0x11, &with_extension), Some("192.0.2.7")),
            (v2(1, 0x21, &six), Some("2001:db8::7")),
            (v2(0, 0x00, &[]), Some("10.0.0.1")),
            (b"PROXY TCP4 192.0.2.7\r\n".to_vec(), None),
            (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), None),
            (vec![b'P'; 200], None),
            ([b"PROXY ".to_vec(), vec![b'x'; 200]].concat(), None),
            (v2(1, 0x11, &vec![0; 5000]), None),
        ] {
            let text = String::from_utf8_lossy(&header).into_owned();
            let stream = [&*header, b"GET "].concat();
            let mut stream = &*stream;
            let read = proxies(ForwardedHeader::default()).source(peer, &mut stream).await;
            match source {
                Some(source) => assert_eq!((read.unwrap(), stream), (ip(source), &b"GET "[..]), "{text:?}"),
                None => assert!(read.is_err(), "{text:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_proxy_header_of_somebody_else_is_not_read() {
        let peer: SocketAddr = "203.0.113.9:5000".parse().unwrap();
        let mut stream = &b"PROXY TCP4 192.0.2.7 10.0.0.1 80 443\r\n"[..];
        let source = proxies(ForwardedHeader::default()).source(peer, &mut stream).await;
        assert_eq!(source.unwrap(), peer.ip());
        assert_eq!(stream.len(), 38);
    }
}
