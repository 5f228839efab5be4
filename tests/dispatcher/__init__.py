"""The dispatcher: its rules, its calls on twins in memory, and the whole server on Valkey and Perspective Broker."""
