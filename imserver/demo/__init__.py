"""``imctl demo``: an embedded Valkey and the three servers as real processes, supervised, and a page to try
them.
"""
