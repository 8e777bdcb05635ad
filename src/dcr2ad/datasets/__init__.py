"""Readers of inspection data, and parts the product draws itself."""
