"""Tests of `imserver.worker`."""
