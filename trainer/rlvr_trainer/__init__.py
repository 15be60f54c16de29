"""The trainer: collects rollouts, learns from them, and publishes weights to the engines."""
