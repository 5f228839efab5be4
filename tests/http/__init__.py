"""Tests of imserver.http."""
