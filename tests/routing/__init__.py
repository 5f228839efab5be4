"""Tests of `imserver.routing`."""
