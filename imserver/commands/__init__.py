"""The commands of ``imctl``, a module for each kind; `imserver.cli` puts them together."""
