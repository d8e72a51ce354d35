"""Offsets: committed with the rows they belong to, resumed from, and compared with the broker's."""
