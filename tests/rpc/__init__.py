"""Tests of the calls between servers."""
