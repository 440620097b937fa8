//! What this host is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use certctl_contract::agents::Heartbeat;
use certctl_model::connector::TargetType;
use tokio::net::UdpSocket;
use url::Url;

/// The host's own name.
pub(crate) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What a heartbeat says.
pub(crate) async fn describe(server: &Url) -> Heartbeat {
    Heartbeat {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: name(),
        os: os(std::env::consts::OS).to_owned(),
        architecture: architecture(std::env::consts::ARCH).to_owned(),
        ip_address: address_towards(server)
            .await
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
        capabilities: TargetType::ALL.iter().map(ToString::to_string).collect(),
    }
}

/// The address from which this host reaches the server. Connecting a UDP socket chooses a route and sends nothing.
async fn address_towards(server: &Url) -> Option<IpAddr> {
    let (host, port) = (server.host_str()?, server.port_or_known_default()?);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    for peer in tokio::net::lookup_host((host, port)).await.ok()? {
        let any: IpAddr = match peer.is_ipv4() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Ok(socket) = UdpSocket::bind((any, 0)).await else {
            continue;
        };
        if socket.connect(peer).await.is_ok() {
            return socket.local_addr().ok().map(|local| local.ip());
        }
    }
    None
}

/// The server knows systems and processors by the names Go has for them; agent groups match on these.
fn os(rust: &'static str) -> &'static str {
    match rust {
        "macos" => "darwin",
        other => other,
    }
}

fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_heartbeat_describes_this_host_in_the_servers_words() {
        let said = describe(&"http://127.0.0.1:8443".parse().unwrap()).await;
        assert_eq!(
            (said.ip_address.as_str(), said.os.as_str()),
            ("127.0.0.1", os(std::env::consts::OS))
        );
        assert_eq!(said.capabilities, ["NGINX"]);
        assert!(!said.hostname.is_empty() && !said.version.is_empty());
        for (rust, go) in [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")] {
            assert_eq!(architecture(rust), go);
        }
    }
}
