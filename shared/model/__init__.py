"""Language models: asking them, confidence in their answers, and near-duplicate texts."""
