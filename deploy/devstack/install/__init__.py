"""Installation of what the local stack runs: packages, Java, models."""
