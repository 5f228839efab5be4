"""The load tests, tried with a few clients: what they print has to be consistent. Nothing here is timed."""
