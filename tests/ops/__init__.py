"""Tests of imserver.ops."""
