"""Upgrades: what a version before has written is served by this one, and both run side by side.

`cd tests && python -m upgrade DIRECTORY` writes what this version writes: see `scenario.py`.
"""
