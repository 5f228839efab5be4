"""The whole path: the demo's real processes, third-party clients."""
