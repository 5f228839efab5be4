"""From a delivery to the connections of its receiver: store, locate, group by worker, push, fall back."""
