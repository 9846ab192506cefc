"""Measurements on loopback, in bounded time: `make bench`. Read ratios, not times."""
