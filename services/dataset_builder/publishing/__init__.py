"""Versions and inspections in the artifact store. `publish` writes them, with `page` and `card`; `versions` reads."""
