"""The stages of the method, one function each."""
