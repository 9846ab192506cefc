"""What the network may not do to us: hostile servers and resolvers on loopback against the real deliverer."""
