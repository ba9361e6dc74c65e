"""Time calls side by side, keep every sample, and say what the samples are worth."""
