"""Signing taken away: this directory on PYTHONPATH has a Python run `sitecustomize` at its start."""
