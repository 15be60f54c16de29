"""What a person reads about a run after the fact: one HTML page, and rollouts in the terminal."""
