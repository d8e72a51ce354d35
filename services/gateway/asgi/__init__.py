"""The hot routes' own HTTP: limited request heads, raw bodies, an answer in a single write."""
