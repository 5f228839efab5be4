"""imserver: a self-hosted instant-messaging server for e-commerce, on Twisted."""

__version__ = "0.1.0"
