//! A TCP address, and whether it may be served.

use std::fmt;
use std::net::ToSocketAddrs;

use super::EndpointError;

/// Whether a daemon may be reached through the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcpAccess {
    /// It may not.
    #[default]
    No,
    /// On the interface whose address is named.
    Named,
    /// On every interface too (`0.0.0.0`, `[::]`).
    Any,
}

/// `tcp://HOST:PORT`; an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress {
    host: String,
    port: u16,
}

impl TcpAddress {
    /// `HOST:PORT`, or nothing if that is not what `text` is.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let bare = match host.strip_prefix('[') {
            Some(rest) => {
                let inside = rest.strip_suffix(']')?;
                inside.parse::<std::net::Ipv6Addr>().ok()?;
                inside
            }
            None => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                Some(host).filter(|host| !host.is_empty() && host.chars().all(is_name))?
            }
        };
        Some(Self {
            host: bare.to_owned(),
            port,
        })
    }

    /// The name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Checks that a daemon may listen here.
    ///
    /// # Errors
    /// [`EndpointError::TcpNotAllowed`], [`EndpointError::Wildcard`], [`EndpointError::Host`].
    pub fn check_served(&self, access: TcpAccess) -> Result<(), EndpointError> {
        if access == TcpAccess::No {
            return Err(EndpointError::TcpNotAllowed(self.clone()));
        }
        let found = (self.host(), self.port).to_socket_addrs();
        let mut found = found.map_err(|error| EndpointError::Host {
            address: self.clone(),
            error,
        })?;
        if access != TcpAccess::Any && found.any(|address| address.ip().is_unspecified()) {
            return Err(EndpointError::Wildcard(self.clone()));
        }
        Ok(())
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "tcp://[{host}]:{port}")
        } else {
            write!(f, "tcp://{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_is_served_where_it_was_allowed() {
        let check = |host: &str, access| {
            let address = TcpAddress::parse(host).expect("an address");
            address.check_served(access)
        };
        for host in ["127.0.0.1:7", "[::1]:7", "0.0.0.0:7"] {
            let refused = check(host, TcpAccess::No);
            assert!(
                matches!(refused, Err(EndpointError::TcpNotAllowed(_))),
                "{host}"
            );
        }
        for host in ["0.0.0.0:7", "[::]:7", "0:7"] {
            let refused = check(host, TcpAccess::Named);
            assert!(matches!(refused, Err(EndpointError::Wildcard(_))), "{host}");
            assert!(check(host, TcpAccess::Any).is_ok(), "{host}");
        }
        assert!(check("127.0.0.1:7", TcpAccess::Named).is_ok());
        let unknown = check("no-such-host.invalid:7", TcpAccess::Named);
        assert!(matches!(unknown, Err(EndpointError::Host { .. })));
    }
}
