"""Tests of the demo's web page and of the JavaScript SDK."""
