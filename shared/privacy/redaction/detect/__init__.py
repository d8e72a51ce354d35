"""Detection: where in a text personal data stands."""
