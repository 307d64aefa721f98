"""What a GPU shows, in one command: agreement, rounding, speed beside its floors, training, loading."""
