"""Releases: what belongs to one, and what must hold between them. docs/releases.md has the rules.

python -m tools.release check             exit 1 and say why if versions, changelog, contract or formats are
                                          not as a release leaves them
python -m tools.release snapshot          write releases/VERSION/ anew, while nothing is released
python -m tools.release next VERSION      set the version that comes
python -m tools.release cut VERSION       make this checkout release VERSION (`make release VERSION=...`)
"""
