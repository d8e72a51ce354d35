"""The chapters of the story, in order: traffic, learning, live_test, rollback; they follow the cycle with `cycle`."""
