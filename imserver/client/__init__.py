"""The Python SDK: a client of the workers' WebSocket that reconnects, resumes and acknowledges by itself."""

from imserver.client.service import IMClient
from imserver.client.session import IMError, Limits

__all__ = ["IMClient", "IMError", "Limits"]
