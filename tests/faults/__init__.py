"""The proof of delivery: real servers, real faults, and a checker that looks for violations."""
