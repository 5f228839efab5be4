"""Tests of imserver.demo."""
