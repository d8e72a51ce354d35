"""The parts of the loop, in order: traffic, learning, live_test; they follow the cycle with `cycle`."""
