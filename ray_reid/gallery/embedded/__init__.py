"""Galleries that outlive their processes: what is on disk, what is in memory, and the search.

`store` reads a gallery and `writer` changes it; `segment` is its immutable part, `log` what was
written since, `contents` both in memory; `generation` writes the files, `edits` and `seeding` say
what people did to it and how that is kept; `nearest` searches exactly, `ann` approximately, `where`
filters and `rules` say what may enter. docs/gallery.md has the format and what it guarantees.
"""
