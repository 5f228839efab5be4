"""Perspective Broker between dispatchers and workers, and its twin within one process."""
