"""Tests of imserver.business."""
