"""What several tests share: small configs and datasets, oracles, a local file server, a full disk."""
