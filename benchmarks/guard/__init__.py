"""Fails when something has become much dearer than `reference.json` says: ratios of a short run, and
instructions of pure parts."""
