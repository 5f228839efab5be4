"""The dispatcher: takes messages from backends, stores them in inboxes and routes them to the receivers' workers."""
