"""Tests of imserver.client."""
