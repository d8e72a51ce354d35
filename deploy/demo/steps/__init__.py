"""The parts of the loop, in order: traffic, learning, live_test, rollback; they follow the cycle with `cycle`."""
