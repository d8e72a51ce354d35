"""API keys: what each key may do, and its rate limits."""
