"""What is kept outside the processes: Redis (or its in-memory twin) and the archive's database."""
