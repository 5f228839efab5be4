"""What goes over the wire: frames, codes, names, ids and tokens. No I/O."""
