"""Losses, batches, schedule and the two training stages."""
