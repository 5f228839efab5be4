"""``imctl bench``: load tests that anyone can run again, as ratios to a plain measure taken in the same run.

Each scenario starts a stack of its own, the clients and a stock Autobahn echo server as processes of their own,
and says what it cost each process.  Absolute figures are the machine's; the ratios are ours.
"""
