"""What every server has beside its task: start and end, logs, metrics, health."""
