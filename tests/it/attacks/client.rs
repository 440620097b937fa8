//! Servers and proxies that attack the programs which call them.
