//! A TLS 1.2 ClientHello of our own (RFC 5246 §7.4), for servers that rustls has no cipher suite in common with: those
//! that offer RSA key exchange alone. The certificate comes in the clear before any key is needed.

use rustls::SignatureScheme;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Served;

/// RSA key exchange first, then what servers of its time have besides.
const CIPHER_SUITES: [u16; 18] = [
    0x009c, 0x009d, 0x003c, 0x003d, 0x002f, 0x0035, 0x000a, 0xc02f, 0xc030, 0xc02b, 0xc02c, 0xc027, 0xc023, 0xc013,
    0xc014, 0xc009, 0xc00a, 0x00ff,
];
/// A handshake as far as the certificates; rustls has the same limit for one message.
const MOST_OCTETS: usize = 64 * 1024;

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const CERTIFICATE: u8 = 11;
const CERTIFICATE_STATUS: u8 = 22;

/// Asks for a server's certificate and ends the connection. That the server holds its key is not checked.
pub(super) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    server_name: Option<&str>,
    schemes: &[SignatureScheme],
    random: [u8; 32],
) -> Result<Served, String> {
    let hello = client_hello(server_name, schemes, random);
    stream.write_all(&hello).await.map_err(|error| error.to_string())?;
    let mut served = Served::default();
    let mut messages = Vec::new();
    loop {
        while let Some((kind, body, rest)) = message(&messages) {
            match kind {
                CERTIFICATE => served.chain = certificates(body).ok_or("its Certificate message is malformed")?,
                CERTIFICATE_STATUS => served.ocsp = status(body).unwrap_or_default(),
                _ if !served.chain.is_empty() => return Ok(served),
                _ => {}
            }
            messages = rest.to_vec();
        }
        let record = record(&mut stream).await;
        match record {
            Ok((HANDSHAKE, octets)) if messages.len() + octets.len() <= MOST_OCTETS => messages.extend(octets),
            // The certificate counts, however the handshake ends.
            _ if !served.chain.is_empty() => return Ok(served),
            Ok((ALERT, octets)) => return Err(format!("it refuses the handshake with alert {:?}", octets.get(1))),
            Ok(_) => return Err("it does not answer with a TLS handshake".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn record(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await?;
    stream.read_u16().await?;
    let mut octets = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut octets).await?;
    Ok((kind, octets))
}

/// The first whole handshake message: its type, its body, and what follows.
fn message(octets: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, rest) = octets.split_first()?;
    let (body, rest) = take(rest, 3)?;
    Some((*kind, body, rest))
}

/// A vector behind a length of so many octets, and what follows it.
fn take(octets: &[u8], prefix: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = octets.split_at_checked(prefix)?;
    let length = length.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet));
    rest.split_at_checked(length)
}

fn certificates(body: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut list, _) = take(body, 3)?;
    let mut chain = Vec::new();
    while !list.is_empty() {
        let (one, rest) = take(list, 3)?;
        chain.push(one.to_vec());
        list = rest;
    }
    (!chain.is_empty()).then_some(chain)
}

/// RFC 6066 §8: an OCSP response.
fn status(body: &[u8]) -> Option<Vec<u8>> {
    let (kind, rest) = body.split_first()?;
    let (response, _) = take(rest, 3)?;
    (*kind == 1).then(|| response.to_vec())
}

fn client_hello(server_name: Option<&str>, schemes: &[SignatureScheme], random: [u8; 32]) -> Vec<u8> {
    let words = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let schemes: Vec<u16> = schemes.iter().map(|scheme| u16::from(*scheme)).collect();
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, body: Vec<u8>| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(vector(2, body));
    };
    if let Some(name) = server_name {
        let entry = [vec![0], vector(2, name.as_bytes().to_vec())].concat();
        extension(0, vector(2, entry));
    }
    extension(5, vec![1, 0, 0, 0, 0]);
    extension(10, vector(2, words(&[29, 23, 24, 25])));
    extension(11, vec![1, 0]);
    extension(13, vector(2, words(&schemes)));
    let body = [
        vec![3, 3],
        random.to_vec(),
        vec![0],
        vector(2, words(&CIPHER_SUITES)),
        vec![1, 0],
        vector(2, extensions),
    ];
    let message = [vec![1], vector(3, body.concat())].concat();
    [vec![HANDSHAKE, 3, 1], vector(2, message)].concat()
}

/// Octets behind their length, which has `prefix` octets.
fn vector(prefix: usize, octets: Vec<u8>) -> Vec<u8> {
    let length = (octets.len() as u32).to_be_bytes();
    [length[4 - prefix..].to_vec(), octets].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &[u8]) -> Result<Served, String> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        let schemes = [SignatureScheme::RSA_PSS_SHA256];
        ask(ours, Some("a.example"), &schemes, [7; 32]).await
    }

    #[tokio::test]
    async fn a_certificate_is_read_from_whatever_a_server_sends_before_it_gives_up() {
        let certificate = [vec![CERTIFICATE], vector(3, vector(3, vector(3, b"leaf".to_vec())))].concat();
        let hello = [vec![2], vector(3, vec![3, 3])].concat();
        let in_record = |octets: Vec<u8>| [vec![HANDSHAKE, 3, 3], vector(2, octets)].concat();
        let done = [vec![14], vector(3, vec![])].concat();
        let flight = [hello, certificate.clone(), done].concat();
        let (one, two) = flight.split_at(9);
        for answer in [
            in_record(flight.clone()),
            [in_record(one.to_vec()), in_record(two.to_vec())].concat(),
            in_record(certificate),
        ] {
            assert_eq!(answered(&answer).await.unwrap().chain, [b"leaf".to_vec()]);
        }
        for answer in [
            &[ALERT, 3, 3, 0, 2, 2, 40][..],
            b"HTTP/1.1 400 Bad Request",
            b"",
            &[HANDSHAKE, 3, 3, 0, 4, 11, 0, 0, 0],
        ] {
            assert!(answered(answer).await.is_err());
        }
    }
}
