"""Tests of the package as it is installed, and of the rules of the house."""
