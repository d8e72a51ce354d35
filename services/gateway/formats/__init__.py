"""OpenAI's API formats: parse requests, rewrite answers, relay streams. No I/O."""
