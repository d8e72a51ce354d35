"""HTTP as the hot path sees it: bounded heads, raw bodies, an answer in one write."""
